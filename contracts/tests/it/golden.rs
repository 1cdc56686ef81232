//! Messages as the first version wrote them are still read: old records stay in Kafka for weeks.

use std::{env, fmt::Write as _, fs, path::Path};

use alloy::primitives::{Address, B256};
use contracts::{
    api::jobs::JobEventType,
    event::{
        Attributes, BatchConfirmed, Cancelled, Completed, Confirmed, ConfirmedJob, Failed,
        JobEvent, Kind, Purged, Record, Seal, Started, Submitted, UsageRecorded, from_proto_time,
        parse_job_event_id, proto_time,
    },
};
use proptest::prelude::*;

const JOB: &str = "job_0197e2a04b7c7d3e8f5a6b7c8d9e0f1a";
const TENANT: &str = "tenant_0197e2a04b7c7d3e8f5a6b7c8d9e0f1b";
const REQUEST: &str = "req_0197e2a04b7c7d3e8f5a6b7c8d9e0f1c";
const TIME: &str = "2026-01-02T03:04:05.678901Z";

fn time() -> prost_types::Timestamp {
    proto_time(TIME.parse().unwrap())
}

fn job_event(event_number: u64, kind: Kind) -> JobEvent {
    JobEvent {
        tenant_id: TENANT.into(),
        job_id: JOB.into(),
        event_number,
        occurred_at: Some(time()),
        job_type: "digest".into(),
        subject: "user_1".into(),
        team: (event_number > 1).then(|| "blue".into()),
        kind: Some(kind),
    }
}

fn seal() -> Seal {
    Seal {
        individual: true,
        submitter: vec![1; 20],
        content_hash: vec![2; 32],
        result_hash: vec![3; 32],
        salt: vec![4; 32],
    }
}

fn job_events() -> Vec<JobEvent> {
    let failed = Failed {
        attempts: 3,
        code: "TIMEOUT".into(),
        detail: "took too long".into(),
        compute_ms: 7,
        seal: Some(seal()),
    };
    let confirmed = Confirmed {
        chain_id: 31_337,
        registry: vec![5; 20],
        batch_number: 6,
        sequence: 7,
        transaction_hash: vec![8; 32],
        block_number: 9,
        job_status: "COMPLETED".into(),
    };
    let submitted = Submitted {
        payload_bytes: 2_049,
        compute_units: 3,
        requires_confirmation: true,
        priority: 5,
    };
    [
        Kind::Submitted(submitted),
        Kind::Started(Started { attempt: 1 }),
        Kind::Completed(Completed::new(1, 2, "{\"bytes\":1}", Some(seal()))),
        Kind::Failed(failed),
        Kind::Cancelled(Cancelled {}),
        Kind::Confirmed(confirmed),
        Kind::Purged(Purged {}),
    ]
    .into_iter()
    .zip(1..)
    .map(|(kind, number)| job_event(number, kind))
    .collect()
}

fn usage() -> UsageRecorded {
    UsageRecorded {
        tenant_id: TENANT.into(),
        request_id: REQUEST.into(),
        key_id: Some("key_0197e2a04b7c7d3e8f5a6b7c8d9e0f1d".into()),
        subject: "user_1".into(),
        endpoint: "/v1/jobs/{job_id}".into(),
        method: "GET".into(),
        status_code: 200,
        duration_us: 1_234,
        occurred_at: Some(time()),
        request_bytes: 0,
        response_bytes: 512,
        replayed: false,
        billable: true,
    }
}

fn batch() -> BatchConfirmed {
    let job = ConfirmedJob {
        job_id: JOB.into(),
        tenant_id: TENANT.into(),
        sequence: 7,
    };
    BatchConfirmed {
        chain_id: 31_337,
        registry: vec![0xAB; 20],
        batch_number: 6,
        first_sequence: 7,
        jobs_root: vec![1; 32],
        transaction_hash: vec![2; 32],
        block_number: 9,
        block_hash: vec![3; 32],
        finalized_at: Some(time()),
        jobs: vec![job],
    }
}

/// The recorded messages, one `name hex` a line; `UPDATE=1` records anew what is missing, and never
/// replaces a line: what was written stays written.
fn recorded(messages: &[(String, Vec<u8>)]) -> Vec<Vec<u8>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/golden.txt");
    let mut text = fs::read_to_string(&path).unwrap_or_default();
    if env::var_os("UPDATE").is_some() {
        for (name, bytes) in messages {
            if !text
                .lines()
                .any(|line| line.split(' ').next() == Some(name))
            {
                writeln!(text, "{name} {}", const_hex::encode(bytes)).unwrap();
            }
        }
        fs::write(&path, &text).unwrap();
    }
    let find = |name: &str| {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(&format!("{name} ")));
        const_hex::decode(line.unwrap_or_else(|| panic!("{name} is not recorded"))).unwrap()
    };
    messages.iter().map(|(name, _)| find(name)).collect()
}

#[test]
fn recorded_messages_are_still_read_and_written_the_same() {
    let events = job_events();
    let mut records: Vec<Record> = events.iter().map(|event| event.record().unwrap()).collect();
    records.push(usage().record().unwrap());
    records.push(batch().record().unwrap());
    let messages: Vec<_> = records
        .iter()
        .map(|r| (r.attributes.event_type.clone(), r.value.clone()))
        .collect();
    let recorded = recorded(&messages);
    for (event, bytes) in events.iter().zip(&recorded) {
        assert_eq!(&JobEvent::from_value(bytes).unwrap(), event);
    }
    assert_eq!(UsageRecorded::from_value(&recorded[7]).unwrap(), usage());
    assert_eq!(BatchConfirmed::from_value(&recorded[8]).unwrap(), batch());
}

#[test]
fn a_record_says_who_what_and_when() {
    for (event, kind) in job_events().iter().zip(JobEventType::ALL) {
        let record = event.record().unwrap();
        let attributes = &record.attributes;
        assert_eq!((record.topic, record.key.as_str()), ("jobs.events.v1", JOB));
        assert_eq!(attributes.source, "/jobs");
        assert_eq!(attributes.event_type, kind.as_str());
        assert_eq!(
            attributes.id,
            format!("{}-{}", &JOB[4..], event.event_number)
        );
        let parsed = parse_job_event_id(&attributes.id).unwrap();
        assert_eq!(parsed, (JOB.parse().unwrap(), event.event_number));
    }
    let record = batch().record().unwrap();
    let registry = "ab".repeat(20);
    assert_eq!(record.attributes.id, "batch-6");
    assert_eq!(
        record.attributes.source,
        format!("/relayer/31337/0x{registry}")
    );
    let record = usage().record().unwrap();
    assert_eq!(
        (record.attributes.id.as_str(), record.key.as_str()),
        (REQUEST, TENANT)
    );
}

#[test]
fn attributes_survive_headers() {
    let attributes = usage().record().unwrap().attributes;
    let headers = attributes.headers();
    let bytes = || {
        headers
            .iter()
            .map(|(name, value)| (*name, value.as_bytes()))
    };
    assert_eq!(Attributes::from_headers(bytes()).unwrap(), attributes);
    for missing in ["ce_id", "ce_source", "ce_type", "ce_time"] {
        let rest = bytes().filter(|(name, _)| *name != missing);
        let error = Attributes::from_headers(rest).unwrap_err().to_string();
        assert_eq!(error, format!("{missing} is missing"));
    }
}

#[test]
fn what_is_no_event_says_why() {
    assert!(
        JobEvent::from_value(b"\xff\xff")
            .unwrap_err()
            .to_string()
            .contains("protobuf")
    );
    let mut event = job_events().remove(0);
    event.job_id = "job_1".into();
    let error = event.record().unwrap_err().to_string();
    assert_eq!(
        error,
        "job_id must be job_ and 32 lower-case hexadecimal digits"
    );
    let empty = JobEvent::from_value(b"").unwrap();
    assert_eq!(
        empty.event_type().unwrap_err().to_string(),
        "kind is missing"
    );
}

#[test]
fn a_seal_is_read_with_its_lengths_checked() {
    let event = job_events().remove(2);
    let seal = event.seal().unwrap();
    assert_eq!(seal.submitter_address().unwrap(), Address::repeat_byte(1));
    let expected = (
        B256::repeat_byte(2),
        B256::repeat_byte(3),
        B256::repeat_byte(4),
    );
    assert_eq!(seal.hashes().unwrap(), expected);
    let short = Seal {
        salt: vec![4; 31],
        ..seal.clone()
    };
    assert_eq!(short.hashes().unwrap_err().to_string(), "salt is malformed");
}

#[test]
fn a_large_result_is_left_out() {
    let large = format!("\"{}\"", "x".repeat(16 * 1_024));
    let completed = Completed::new(1, 1, &large, None);
    assert!(completed.truncated && completed.result_json.is_empty());
    assert!(!Completed::new(1, 1, &large[..16 * 1_024], None).truncated);
}

proptest! {
    #[test]
    fn times_survive_protobuf(micros in -60_000_000_000_000_000i64..=250_000_000_000_000_000) {
        let time = jiff::Timestamp::from_microsecond(micros).unwrap();
        let written = proto_time(time);
        prop_assert!((0..1_000_000_000).contains(&written.nanos));
        prop_assert_eq!(from_proto_time(&written), Some(time));
    }
}
