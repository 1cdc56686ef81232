//! A spool's file format: records one after another, each with its length and CRC before it, so
//! that a record cut off by a crash is seen and cut away.

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
    frame_with(record.len(), |framed| framed.extend_from_slice(record))
}

/// As [`frame`], of a record of about `length` bytes that `write` appends.
///
/// # Panics
/// When it is larger than [`RECORD_MAX_BYTES`], which no record of ours is.
#[must_use]
pub fn frame_with(length: usize, write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut framed = Vec::with_capacity(HEADER_BYTES + length);
    framed.extend_from_slice(&[0; HEADER_BYTES]);
    write(&mut framed);
    let record = &framed[HEADER_BYTES..];
    assert!(
        record.len() <= RECORD_MAX_BYTES,
        "a usage record is a few hundred bytes"
    );
    let length = u32::try_from(record.len()).expect("asserted above");
    let sum = crc32fast::hash(record);
    framed[..4].copy_from_slice(&length.to_le_bytes());
    framed[4..HEADER_BYTES].copy_from_slice(&sum.to_le_bytes());
    framed
}

/// The records at the beginning of `bytes`.
#[must_use]
pub fn parse(bytes: &[u8]) -> Parsed<'_> {
    let (mut records, mut at) = (Vec::new(), 0);
    let tail = loop {
        let rest = &bytes[at..];
        let Some((header, body)) = rest.split_first_chunk::<HEADER_BYTES>() else {
            break if rest.is_empty() {
                Tail::End
            } else {
                Tail::Partial
            };
        };
        let [l0, l1, l2, l3, c0, c1, c2, c3] = *header;
        let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        // An empty record is none: files may end in zeros after a power cut.
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn zeros_and_changed_bytes_are_damage() {
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
        file.extend([0; 32]);
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
