//! What a webhook tells of a job is what the job came to.

use contracts::{
    api::jobs::{JobEventType, JobFailure, JobStatus, JobView},
    assertion::sha256_hex,
    event::RESULT_MAX_BYTES,
};

use crate::receiver::Told;

/// What of `told` is not as the job and the event make it.
pub(super) fn wrong(view: &JobView, event: JobEventType, told: &Told) -> Vec<&'static str> {
    let status = match event {
        JobEventType::Submitted | JobEventType::Purged => JobStatus::Pending,
        JobEventType::Started => JobStatus::Processing,
        JobEventType::Completed => JobStatus::Completed,
        JobEventType::Failed => JobStatus::Failed,
        JobEventType::Cancelled => JobStatus::Cancelled,
        JobEventType::Confirmed => view.status,
    };
    let shown = &view.blockchain_confirmation;
    let confirmation = Some(shown).filter(|_| event == JobEventType::Confirmed);
    let checks = [
        ("job type", told.job_type == view.job_type),
        ("status", told.status == status),
        ("result", has_result(view, event, told)),
        ("error", has_error(view, event, told)),
        (
            "sequence",
            told.sequence == confirmation.and_then(|shown| shown.sequence),
        ),
        (
            "transaction",
            told.transaction_hash == confirmation.and_then(|shown| shown.transaction_hash),
        ),
    ];
    let wrong = checks.iter().filter(|(_, right)| !right);
    wrong.map(|(what, _)| *what).collect()
}

fn has_result(view: &JobView, event: JobEventType, told: &Told) -> bool {
    if event != JobEventType::Completed {
        return told.result_sha256.is_none();
    }
    match (&view.result, &told.result_sha256) {
        // It was erased since.
        (None, _) => true,
        (Some(result), Some(hash)) => sha256_hex(result.get().as_bytes()) == *hash,
        (Some(result), None) => result.get().len() > RESULT_MAX_BYTES,
    }
}

fn has_error(view: &JobView, event: JobEventType, told: &Told) -> bool {
    if event != JobEventType::Failed {
        return told.error.is_none();
    }
    // Where there is none it was erased since.
    view.error.as_ref().is_none_or(|error| {
        let failure = serde_json::from_str::<JobFailure>(error.get()).ok();
        failure.is_some() && failure == told.error
    })
}

#[cfg(test)]
mod tests {
    use alloy::primitives::B256;
    use serde_json::value::RawValue;

    use super::*;
    use crate::audit::fixture::{facts, kinds};

    #[test]
    fn a_webhook_that_tells_otherwise_than_the_job_is_found() {
        let with = |index: usize, change: fn(&mut Told)| {
            let mut facts = facts();
            change(facts.receipts[index].told.as_mut().unwrap());
            kinds(&crate::audit::deliveries::check(&facts))
        };
        let (completed, confirmed) = (0, 1);
        let forged: [fn(&mut Told); 5] = [
            |told| told.status = JobStatus::Pending,
            |told| told.result_sha256 = Some(sha256_hex(br#"{"forged":true}"#)),
            |told| told.result_sha256 = None,
            |told| told.sequence = Some(1),
            |told| told.error = Some(failure()),
        ];
        for (index, change) in forged.into_iter().enumerate() {
            assert_eq!(with(completed, change), ["webhook_wrong"], "{index}");
        }
        let forged: [fn(&mut Told); 3] = [
            |told| told.sequence = Some(99),
            |told| told.transaction_hash = Some(B256::ZERO),
            |told| told.status = JobStatus::Failed,
        ];
        for (index, change) in forged.into_iter().enumerate() {
            assert_eq!(with(confirmed, change), ["webhook_wrong"], "{index}");
        }
    }

    #[test]
    fn a_failure_is_told_as_the_job_shows_it() {
        let facts = facts();
        let mut view = facts.jobs[2].clone();
        view.status = JobStatus::Failed;
        view.result = None;
        let text = serde_json::to_string(&failure()).unwrap();
        view.error = Some(RawValue::from_string(text).unwrap());
        let mut told = facts.receipts[0].told.clone().unwrap();
        told.status = JobStatus::Failed;
        told.result_sha256 = None;
        assert_eq!(wrong(&view, JobEventType::Failed, &told), ["error"]);
        told.error = Some(failure());
        assert_eq!(wrong(&view, JobEventType::Failed, &told), [""; 0]);
    }

    fn failure() -> JobFailure {
        JobFailure {
            code: "TIMEOUT".into(),
            detail: "too slow".into(),
        }
    }
}
