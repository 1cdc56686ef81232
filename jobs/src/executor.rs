//! What the job types do. A task is read from the payload once and knows nothing of leases,
//! attempts' bookkeeping or time limits: those are the worker's.

use std::time::Duration;

use alloy::primitives::keccak256;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use contracts::job_type::JobType;
use ring::digest;
use serde::Deserialize;
use serde_json::json;

use crate::job::Failure;

/// What a digest or a failure is expected to take, queue included.
const EXPECTED: Duration = Duration::from_secs(1);

/// A job's computation, ready to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Task {
    /// SHA-256 and Keccak-256 of some bytes.
    Digest(Vec<u8>),
    /// Waits.
    Sleep(Duration),
    /// Fails its first attempts.
    Fail {
        /// How many attempts fail; every one if `None`.
        times: Option<u32>,
        /// Whether trying again may help.
        retryable: bool,
        /// What the failure says.
        message: String,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "lowercase")]
enum DigestPayload {
    Text(String),
    Base64(String),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SleepPayload {
    milliseconds: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FailPayload {
    #[serde(default)]
    retryable: bool,
    times: Option<u32>,
    message: Option<String>,
}

impl Task {
    /// Reads a payload that satisfied its type's schema.
    ///
    /// # Errors
    /// A permanent failure when it is not one after all.
    pub fn parse(job_type: JobType, payload: &[u8]) -> Result<Self, Failure> {
        let unreadable = |_| Failure::Permanent("The payload cannot be read.".to_owned());
        match job_type {
            JobType::Digest => {
                let bytes = match serde_json::from_slice(payload).map_err(unreadable)? {
                    DigestPayload::Text(text) => text.into_bytes(),
                    DigestPayload::Base64(text) => STANDARD.decode(text).map_err(|_| {
                        Failure::Permanent("The payload is not standard base64.".to_owned())
                    })?,
                };
                Ok(Self::Digest(bytes))
            }
            JobType::Sleep => {
                let SleepPayload { milliseconds } =
                    serde_json::from_slice(payload).map_err(unreadable)?;
                Ok(Self::Sleep(Duration::from_millis(milliseconds)))
            }
            JobType::Fail => {
                let FailPayload {
                    retryable,
                    times,
                    message,
                } = serde_json::from_slice(payload).map_err(unreadable)?;
                let message = message.unwrap_or_else(|| "It failed, as asked.".to_owned());
                Ok(Self::Fail {
                    times,
                    retryable,
                    message,
                })
            }
        }
    }

    /// What it should take if all goes well.
    #[must_use]
    pub fn expected(&self) -> Duration {
        match self {
            Self::Sleep(time) => *time + EXPECTED,
            Self::Digest(_) | Self::Fail { .. } => EXPECTED,
        }
    }

    /// Computes the result, a JSON text.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn run(self, attempt: u32) -> Result<String, Failure> {
        match self {
            Self::Digest(bytes) => tokio::task::spawn_blocking(move || hashes(&bytes))
                .await
                .map_err(|_| Failure::Retryable("The computation was interrupted.".to_owned())),
            Self::Sleep(time) => {
                tokio::time::sleep(time).await;
                let milliseconds = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
                Ok(json!({ "slept_milliseconds": milliseconds }).to_string())
            }
            Self::Fail {
                times,
                retryable,
                message,
            } => {
                if times.is_some_and(|times| attempt > times) {
                    Ok(json!({ "attempts": attempt }).to_string())
                } else if retryable {
                    Err(Failure::Retryable(message))
                } else {
                    Err(Failure::Permanent(message))
                }
            }
        }
    }
}

fn hashes(bytes: &[u8]) -> String {
    let sha256 = digest::digest(&digest::SHA256, bytes);
    json!({
        "sha256": alloy::hex::encode_prefixed(sha256),
        "keccak256": keccak256(bytes),
        "bytes": bytes.len(),
    })
    .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(job_type: JobType, payload: &str) -> Task {
        Task::parse(job_type, payload.as_bytes()).unwrap()
    }

    #[tokio::test]
    async fn a_digest_is_that_of_the_text_or_of_the_decoded_bytes() {
        let text = task(JobType::Digest, r#"{"text": "abc"}"#)
            .run(1)
            .await
            .unwrap();
        let base64 = task(JobType::Digest, r#"{"base64": "YWJj"}"#)
            .run(1)
            .await
            .unwrap();
        assert_eq!(text, base64);
        let result: serde_json::Value = serde_json::from_str(&text).unwrap();
        // FIPS 180-2 B.1, and the well-known Keccak-256 of "abc".
        let sha256 = "0xba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let keccak256 = "0x4e03657aea45a94fc7d47ba826c8d667c0d1e6e33a64a036ec44f58fa12d6c45";
        assert_eq!(
            result,
            json!({"sha256": sha256, "keccak256": keccak256, "bytes": 3})
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_sleep_takes_its_time_and_is_expected_to() {
        let sleep = task(JobType::Sleep, r#"{"milliseconds": 60000}"#);
        assert!(sleep.expected() > Duration::from_mins(1));
        let started = tokio::time::Instant::now();
        assert_eq!(
            sleep.run(1).await.unwrap(),
            r#"{"slept_milliseconds":60000}"#
        );
        assert_eq!(started.elapsed(), Duration::from_mins(1));
    }

    #[tokio::test]
    async fn a_fail_fails_as_often_and_as_it_was_asked() {
        let twice = task(
            JobType::Fail,
            r#"{"retryable": true, "times": 2, "message": "no"}"#,
        );
        for attempt in [1, 2] {
            let failure = twice.clone().run(attempt).await.unwrap_err();
            assert_eq!(failure, Failure::Retryable("no".to_owned()));
        }
        assert_eq!(twice.run(3).await.unwrap(), r#"{"attempts":3}"#);
        let always = task(JobType::Fail, "{}").run(1).await.unwrap_err();
        assert!(matches!(always, Failure::Permanent(_)));
    }

    #[test]
    fn a_payload_that_slipped_through_is_a_permanent_failure() {
        for payload in [
            "{}",
            "[]",
            r#"{"text": "a", "base64": ""}"#,
            r#"{"base64": "!"}"#,
            "{",
        ] {
            let failure = Task::parse(JobType::Digest, payload.as_bytes()).unwrap_err();
            assert!(matches!(failure, Failure::Permanent(_)), "{payload}");
        }
    }
}
