//! A spool's file format: records one after another, each with its length and CRC before it, so
//! that a record cut off by a crash is seen and cut away. Zeros follow the last one: a file is
//! filled with them before it is written, since what only overwrites changes no metadata.

/// Length and CRC, four bytes each, little-endian.
const HEADER_BYTES: usize = 8;
/// Largest record.
pub const RECORD_MAX_BYTES: usize = 64 * 1_024;

/// The records at the beginning of some bytes.
#[derive(Debug, PartialEq, Eq)]
pub struct Parsed<'a> {
    /// Each record with the place where the next one begins.
    pub records: Vec<(&'a [u8], usize)>,
    /// What follows them.
    pub tail: Tail,
}

/// What follows the last whole record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tail {
    /// Nothing.
    End,
    /// Zeros: nothing was written there yet.
    Blank,
    /// The beginning of a record.
    Partial,
    /// Bytes that are no record: nothing after them can be believed.
    Damaged,
}

/// A record as it stands in a file.
///
/// # Panics
/// When it is larger than [`RECORD_MAX_BYTES`], which no record of ours is.
#[must_use]
pub fn frame(record: &[u8]) -> Vec<u8> {
    let mut framed = Vec::with_capacity(HEADER_BYTES + record.len());
    frame_into(&mut framed, |framed| framed.extend_from_slice(record));
    framed
}

/// As [`frame`], of a record that `write` appends, in place of what was in `framed`.
///
/// # Panics
/// When it is larger than [`RECORD_MAX_BYTES`], which no record of ours is.
pub fn frame_into(framed: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    framed.clear();
    framed.extend_from_slice(&[0; HEADER_BYTES]);
    write(framed);
    let record = &framed[HEADER_BYTES..];
    assert!(
        record.len() <= RECORD_MAX_BYTES,
        "a usage record is a few hundred bytes"
    );
    let length = u32::try_from(record.len()).expect("asserted above");
    let sum = crc32fast::hash(record);
    framed[..4].copy_from_slice(&length.to_le_bytes());
    framed[4..HEADER_BYTES].copy_from_slice(&sum.to_le_bytes());
}

/// The records at the beginning of `bytes`.
#[must_use]
pub fn parse(bytes: &[u8]) -> Parsed<'_> {
    let (mut records, mut at) = (Vec::new(), 0);
    let tail = loop {
        let rest = &bytes[at..];
        let Some((header, body)) = rest.split_first_chunk::<HEADER_BYTES>() else {
            break match rest {
                [] => Tail::End,
                rest if is_blank(rest) => Tail::Blank,
                _ => Tail::Partial,
            };
        };
        if is_blank(header) {
            break Tail::Blank;
        }
        let [l0, l1, l2, l3, c0, c1, c2, c3] = *header;
        let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        // An empty record is none.
        if length == 0 || length > RECORD_MAX_BYTES {
            break Tail::Damaged;
        }
        let Some(record) = body.get(..length) else {
            break Tail::Partial;
        };
        if crc32fast::hash(record) != u32::from_le_bytes([c0, c1, c2, c3]) {
            break Tail::Damaged;
        }
        at += HEADER_BYTES + length;
        records.push((record, at));
    };
    Parsed { records, tail }
}

fn is_blank(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn changed_bytes_are_damage_and_zeros_are_the_end() {
        let mut file = frame(b"one");
        file.extend(frame(b"two"));
        assert_eq!(parse(&file).tail, Tail::End);
        let one = HEADER_BYTES + 3;
        for at in one..file.len() {
            let mut changed = file.clone();
            changed[at] ^= 1;
            let parsed = parse(&changed);
            assert_eq!(parsed.records, [(&b"one"[..], one)]);
            assert_ne!(parsed.tail, Tail::End);
        }
        let whole = file.len();
        for zeros in 1..32 {
            file.push(0);
            let parsed = parse(&file);
            assert_eq!((parsed.records.len(), parsed.tail), (2, Tail::Blank));
            assert_eq!(file.len(), whole + zeros);
        }
        file[whole + 4] = 1;
        assert_eq!(parse(&file).tail, Tail::Damaged);
    }

    proptest! {
        #[test]
        fn a_file_cut_anywhere_gives_the_whole_records_before_the_cut(
            records in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..50), 0..20),
            cut in any::<prop::sample::Index>(),
        ) {
            let file: Vec<u8> = records.iter().flat_map(|record| frame(record)).collect();
            let cut = cut.index(file.len() + 1);
            let parsed = parse(&file[..cut]);
            let whole = parsed.records.last().map_or(0, |(_, end)| *end);
            for ((found, _), record) in parsed.records.iter().zip(&records) {
                prop_assert_eq!(*found, &record[..]);
            }
            prop_assert_eq!(parsed.tail, if whole == cut { Tail::End } else { Tail::Partial });
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let parsed = parse(&bytes);
            prop_assert!(parsed.records.len() <= bytes.len());
        }
    }
}
