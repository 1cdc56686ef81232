//! The job types: what their payloads look like, how long they may take, what they cost.

use std::{fmt, str::FromStr, sync::LazyLock, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use jsonschema::{ValidationError, Validator, error::ValidationErrorKind};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use thiserror::Error;
use utoipa::ToSchema;

use crate::problem::{FIELD_ERRORS_MAX, FieldError};

/// Bytes of payload that one compute unit (CU) pays for.
pub const COMPUTE_UNIT_BYTES: u64 = 1_024;
/// Where the payload stands in a submit request.
const PAYLOAD: &str = "/payload";
/// Longest name of an unknown member that is shown to its sender.
const NAME_SHOWN_MAX_CHARS: usize = 64;

/// What a job does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum JobType {
    /// SHA-256 and Keccak-256 of a text or bytes.
    Digest,
    /// Waits.
    Sleep,
    /// Fails, for tests.
    Fail,
}

/// The text names no job type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("unknown job type")]
pub struct UnknownJobType;

struct Schema {
    document: Value,
    validator: Validator,
}

static SCHEMAS: LazyLock<[Schema; 3]> = LazyLock::new(|| {
    JobType::ALL.map(|job_type| {
        let document = serde_json::from_str(job_type.schema_text());
        let document: Value = document.expect("a test reads each schema");
        let validator = jsonschema::draft202012::new(&document);
        Schema {
            document,
            validator: validator.expect("a test compiles each schema"),
        }
    })
});

impl JobType {
    /// Every type.
    pub const ALL: [Self; 3] = [Self::Digest, Self::Sleep, Self::Fail];

    /// The type as it stands in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Digest => "digest",
            Self::Sleep => "sleep",
            Self::Fail => "fail",
        }
    }

    /// How long one attempt may take.
    #[must_use]
    pub const fn timeout(self) -> Duration {
        match self {
            Self::Digest | Self::Fail => Duration::from_secs(10),
            // The longest sleep is a minute.
            Self::Sleep => Duration::from_secs(75),
        }
    }

    /// The JSON Schema of the type's payload.
    #[must_use]
    pub fn schema(self) -> &'static Value {
        &self.compiled().document
    }

    const fn schema_text(self) -> &'static str {
        match self {
            Self::Digest => include_str!("schemas/digest.json"),
            Self::Sleep => include_str!("schemas/sleep.json"),
            Self::Fail => include_str!("schemas/fail.json"),
        }
    }

    fn compiled(self) -> &'static Schema {
        &SCHEMAS[self as usize]
    }
}

impl fmt::Display for JobType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for JobType {
    type Err = UnknownJobType;

    fn from_str(text: &str) -> Result<Self, UnknownJobType> {
        Self::ALL
            .into_iter()
            .find(|t| t.as_str() == text)
            .ok_or(UnknownJobType)
    }
}

/// What a payload of so many bytes costs: 1 CU for each 1,024 bytes begun, at least 1.
#[must_use]
pub fn compute_units(payload_bytes: usize) -> u64 {
    u64::try_from(payload_bytes)
        .unwrap_or(u64::MAX)
        .div_ceil(COMPUTE_UNIT_BYTES)
        .max(1)
}

/// Every rule of the type's schema that `payload` breaks. What was sent is never repeated, but for
/// the names of unknown members.
pub fn validate(job_type: JobType, payload: &Value) -> Result<(), Vec<FieldError>> {
    let mut errors: Vec<_> = job_type
        .compiled()
        .validator
        .iter_errors(payload)
        .flat_map(|error| explain(job_type, &error))
        .take(FIELD_ERRORS_MAX)
        .collect();
    if let Some(text) = payload.get("base64").and_then(Value::as_str)
        && job_type == JobType::Digest
        && STANDARD.decode(text).is_err()
    {
        let pointer = format!("{PAYLOAD}/base64");
        errors.push(FieldError::new(
            pointer,
            "contentEncoding",
            "is not standard base64",
        ));
    }
    if errors.is_empty() {
        Ok(())
    } else {
        Err(errors)
    }
}

fn explain(job_type: JobType, error: &ValidationError<'_>) -> Vec<FieldError> {
    let at = format!("{PAYLOAD}{}", error.instance_path().as_str());
    match error.kind() {
        ValidationErrorKind::Required { property } => {
            let name = property.as_str().unwrap_or_default();
            vec![FieldError::new(
                member(&at, name),
                "required",
                "is required",
            )]
        }
        ValidationErrorKind::AdditionalProperties { unexpected } => unexpected
            .iter()
            .map(|name| FieldError::new(member(&at, name), "unknown", "is not a known member"))
            .collect(),
        ValidationErrorKind::MinProperties { .. } => job_type.schema()["properties"]
            .as_object()
            .into_iter()
            .flat_map(Map::keys)
            .map(|name| {
                FieldError::new(
                    member(&at, name),
                    "required",
                    "is required, or its alternative",
                )
            })
            .collect(),
        kind => vec![FieldError::new(
            at,
            kind.keyword(),
            error.masked().to_string(),
        )],
    }
}

/// The JSON Pointer of the member `name` of the object at `at`.
pub(crate) fn member(at: &str, name: &str) -> String {
    let shown: String = name.chars().take(NAME_SHOWN_MAX_CHARS).collect();
    format!("{at}/{}", shown.replace('~', "~0").replace('/', "~1"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn errors(job_type: JobType, payload: &Value) -> Vec<(String, String)> {
        let errors = validate(job_type, payload).err().unwrap_or_default();
        errors.into_iter().map(|e| (e.pointer, e.code)).collect()
    }

    fn error(pointer: &str, code: &str) -> (String, String) {
        (pointer.to_owned(), code.to_owned())
    }

    #[test]
    fn every_schema_is_valid_and_stands_at_its_types_place() {
        for job_type in JobType::ALL {
            jsonschema::meta::validate(job_type.schema()).unwrap();
            let title = job_type.schema()["title"].as_str().unwrap().to_lowercase();
            assert_eq!(title, format!("{job_type}payload"));
            assert_eq!(job_type.as_str().parse(), Ok(job_type));
        }
    }

    #[test]
    fn good_payloads_pass() {
        for (job_type, payload) in [
            (JobType::Digest, json!({"text": ""})),
            (JobType::Digest, json!({"base64": "AAE="})),
            (JobType::Sleep, json!({"milliseconds": 60000})),
            (JobType::Fail, json!({})),
            (
                JobType::Fail,
                json!({"retryable": true, "times": 2, "message": "no"}),
            ),
        ] {
            assert_eq!(validate(job_type, &payload), Ok(()), "{payload}");
        }
    }

    #[test]
    fn bad_payloads_name_the_member_at_fault() {
        let digest = |payload| errors(JobType::Digest, &payload);
        assert_eq!(
            digest(json!({})),
            [
                error("/payload/base64", "required"),
                error("/payload/text", "required")
            ],
        );
        assert_eq!(
            digest(json!({"text": "a", "base64": ""})),
            [error("/payload", "maxProperties")]
        );
        assert_eq!(digest(json!({"text": 1})), [error("/payload/text", "type")]);
        let not_base64 = [error("/payload/base64", "contentEncoding")];
        assert_eq!(digest(json!({"base64": "AB="})), not_base64);
        assert_eq!(
            digest(json!({"a/b~": ""})),
            [error("/payload/a~1b~0", "unknown")]
        );

        let sleep = |payload| errors(JobType::Sleep, &payload);
        assert_eq!(
            sleep(json!({})),
            [error("/payload/milliseconds", "required")]
        );
        let too_long = sleep(json!({"milliseconds": 60001}));
        assert_eq!(too_long, [error("/payload/milliseconds", "maximum")]);
        assert_eq!(sleep(json!([])), [error("/payload", "type")]);
    }

    #[test]
    fn an_error_never_repeats_what_was_sent() {
        for payload in [
            json!({"text": 4711}),
            json!("4711"),
            json!({"base64": "4711!"}),
        ] {
            let errors = validate(JobType::Digest, &payload).unwrap_err();
            assert!(
                errors.iter().all(|e| !e.detail.contains("4711")),
                "{errors:?}"
            );
        }
    }

    #[test]
    fn a_compute_unit_is_a_kibibyte_begun() {
        let units = [0, 1, 1_024, 1_025, 1_024 * 1_024].map(compute_units);
        assert_eq!(units, [1, 1, 1, 2, 1_024]);
    }
}
