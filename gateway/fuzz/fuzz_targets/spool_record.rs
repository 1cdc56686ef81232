//! A spool's file: what is read of it is what was written there, and nothing after damage.

#![no_main]

use gateway::spool::segment::{Tail, frame, parse};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let parsed = parse(bytes);
    let mut written = Vec::new();
    for (record, end) in &parsed.records {
        written.extend(frame(record));
        assert_eq!(written.len(), *end);
    }
    assert_eq!(&bytes[..written.len()], &written[..]);
    assert_eq!(parsed.tail == Tail::End, written.len() == bytes.len());
    if parsed.tail == Tail::Blank {
        let rest = &bytes[written.len()..];
        assert!(rest.iter().take(8).all(|byte| *byte == 0));
        // A record that overwrites what is blank is found there, whatever follows it.
        let next = frame(b"next");
        let (from, to) = (written.len(), written.len() + next.len());
        let mut over = bytes.to_vec();
        over.resize(over.len().max(to), 0);
        over[from..to].copy_from_slice(&next);
        let found = parse(&over).records;
        assert_eq!(found[parsed.records.len()], (&b"next"[..], to));
    }
    // A record written after whatever is there is found where that ends cleanly.
    if !bytes.is_empty() && bytes.len() <= 64 * 1_024 && parsed.tail == Tail::End {
        let longer = [bytes, &frame(bytes)].concat();
        assert_eq!(parse(&longer).records.len(), parsed.records.len() + 1);
    }
});
