//! What a job computed, computed again: by the payload of the client's log and the published
//! description of its type's result.

use alloy::primitives::keccak256;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use contracts::{
    api::jobs::{JobStatus, JobView},
    assertion::sha256_hex,
    job_type::JobType,
};
use serde_json::{Value, json};

use super::{Finding, facts::Facts};
use crate::log::Submission;

/// What a job has to come to.
#[derive(Clone, Debug, PartialEq)]
enum Due {
    /// It completes, with this result.
    Result(Value),
    /// It fails.
    Failure,
}

/// The types, ends and results that are not what was asked for and what the payloads come to.
pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    for view in &facts.jobs {
        let Some(submission) = facts.ledger.submission_of(view) else {
            continue;
        };
        let (shown, asked) = (view.job_type, submission.job_type);
        if shown != asked {
            let detail = format!("{shown} instead of {asked}");
            findings.push(Finding::of_job("job_type_wrong", view.job_id, detail));
        }
        match (view.status, expected(submission)) {
            (JobStatus::Pending | JobStatus::Processing, _)
            | (JobStatus::Completed | JobStatus::Failed, None)
            | (JobStatus::Failed, Some(Due::Failure)) => {}
            (JobStatus::Completed, Some(Due::Result(right))) => {
                findings.extend(result(facts, view, &right));
            }
            // Whoever keeps the log cancels nothing.
            (status, _) => {
                let detail = format!("{} is not how it has to end", status.as_str());
                findings.push(Finding::of_job("outcome_wrong", view.job_id, detail));
            }
        }
    }
    findings
}

fn result(facts: &Facts, view: &JobView, right: &Value) -> Option<Finding> {
    let shown = view.result.as_ref().map_or("nothing", |json| json.get());
    let is_right = serde_json::from_str::<Value>(shown).ok().as_ref() == Some(right);
    (!is_right && !is_erased(facts, view)).then(|| {
        let detail = format!("{shown} instead of {right}");
        Finding::of_job("result_wrong", view.job_id, detail)
    })
}

/// What the job has to come to, where that follows from its payload.
fn expected(submission: &Submission) -> Option<Due> {
    let payload: Value = serde_json::from_str(&submission.payload).ok()?;
    match submission.job_type {
        JobType::Digest => {
            let bytes = match (payload.get("text"), payload.get("base64")) {
                (Some(text), _) => text.as_str()?.as_bytes().to_vec(),
                (None, encoded) => STANDARD.decode(encoded?.as_str()?).ok()?,
            };
            Some(Due::Result(json!({
                "sha256": format!("0x{}", sha256_hex(&bytes)),
                "keccak256": keccak256(&bytes).to_string(),
                "bytes": bytes.len(),
            })))
        }
        JobType::Sleep => {
            let milliseconds = payload.get("milliseconds")?;
            Some(Due::Result(json!({ "slept_milliseconds": milliseconds })))
        }
        // It may be asked to fail a few times only.
        JobType::Fail => payload.get("times").is_none().then_some(Due::Failure),
    }
}

/// Of an erased job neither salt nor result is left to compare.
fn is_erased(facts: &Facts, view: &JobView) -> bool {
    let proof = facts.proofs.get(&view.job_id);
    let salt = proof.and_then(|proof| proof.as_ref().ok()?.proof.salt);
    view.result.is_none() && proof.is_some_and(Result::is_ok) && salt.is_none()
}

#[cfg(test)]
mod tests {
    use serde_json::value::RawValue;

    use super::*;
    use crate::audit::fixture::{facts, kinds};

    fn of(job_type: JobType, payload: &str) -> Option<Due> {
        expected(&Submission {
            key: String::new(),
            job_type,
            payload: payload.into(),
            requires_confirmation: false,
        })
    }

    #[test]
    fn a_digest_is_that_of_the_text_or_the_decoded_bytes() {
        let text = of(JobType::Digest, r#"{"text":"\u0061bc"}"#).unwrap();
        assert_eq!(of(JobType::Digest, r#"{"base64":"YWJj"}"#).unwrap(), text);
        // FIPS 180-2 B.1, and the well-known Keccak-256 of "abc".
        let sha256 = "0xba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let keccak256 = "0x4e03657aea45a94fc7d47ba826c8d667c0d1e6e33a64a036ec44f58fa12d6c45";
        let expected = json!({"sha256": sha256, "keccak256": keccak256, "bytes": 3});
        assert_eq!(text, Due::Result(expected));
        let slept = of(JobType::Sleep, r#"{"milliseconds":20}"#).unwrap();
        assert_eq!(slept, Due::Result(json!({"slept_milliseconds": 20})));
        assert_eq!(of(JobType::Fail, "{}"), Some(Due::Failure));
        assert_eq!(of(JobType::Fail, r#"{"times":1}"#), None);
    }

    #[test]
    fn a_job_that_ends_otherwise_than_its_payload_wants_is_found() {
        for status in [JobStatus::Failed, JobStatus::Cancelled] {
            let mut facts = facts();
            facts.jobs[2].status = status;
            assert_eq!(kinds(&check(&facts)), ["outcome_wrong"], "{status:?}");
        }
        let mut facts = facts();
        let fate = facts.ledger.submissions.values_mut().next().unwrap();
        fate.submission.job_type = JobType::Fail;
        fate.submission.payload = "{}".into();
        facts.jobs[0].job_type = JobType::Fail;
        assert_eq!(kinds(&check(&facts)), ["outcome_wrong"], "completed");
        facts.jobs[0].status = JobStatus::Failed;
        assert_eq!(check(&facts), []);
        facts.jobs[0].job_type = JobType::Sleep;
        assert_eq!(kinds(&check(&facts)), ["job_type_wrong"]);
    }

    #[test]
    fn a_wrong_or_lost_result_is_found_whether_it_was_sealed_or_not() {
        for index in [0, 2] {
            let mut facts = facts();
            assert_eq!(check(&facts), []);
            let job = facts.jobs[index].job_id;
            let wrong = RawValue::from_string(r#"{"bytes":1}"#.to_owned()).unwrap();
            facts.jobs[index].result = Some(wrong);
            assert_eq!(kinds(&check(&facts)), ["result_wrong"]);
            assert_eq!(check(&facts)[0].id, job.to_string());
            facts.jobs[index].result = None;
            assert_eq!(kinds(&check(&facts)), ["result_wrong"]);
        }
    }

    #[test]
    fn an_erased_result_is_not_compared() {
        let mut facts = facts();
        let job = facts.jobs[0].job_id;
        facts.jobs[0].result = None;
        facts
            .proofs
            .get_mut(&job)
            .unwrap()
            .as_mut()
            .unwrap()
            .proof
            .salt = None;
        assert_eq!(check(&facts), []);
    }
}
