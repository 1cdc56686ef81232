//! The one reading of a submit request, for gateway and jobs API alike: every error at once, each
//! with the pointer of the member at fault.

use std::{borrow::Cow, collections::BTreeMap, fmt};

use alloy::primitives::Address;
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{DeserializeOwned, Error as _, MapAccess, Visitor},
};
use serde_json::{Value, value::RawValue};
use thiserror::Error;
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{ObjectBuilder, RefOr, Schema, schema::Type},
};

use crate::{
    api::jobs::{ConfirmationMode, METADATA_MAX_BYTES, SubmitRequest},
    job_type::{self, JobType, member},
    problem::{Code, FieldError, Problem},
};

/// How early a job's turn comes: 1 (last) to 9 (first).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Priority(u8);

/// The number is no [`Priority`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("must be 1 to 9")]
pub struct PriorityError;

/// The members of a JSON object, in order, repetitions included.
struct Members(Vec<(String, Box<RawValue>)>);

/// Reads members one by one and gathers what is wrong with them.
#[derive(Default)]
struct Reader {
    errors: Vec<FieldError>,
    job_type: Option<JobType>,
    payload: Option<Box<RawValue>>,
    requires_confirmation: bool,
    confirmation: ConfirmationMode,
    submitter: Option<Address>,
    priority: Option<Priority>,
    metadata: BTreeMap<String, String>,
}

/// The request that `body` is, or the problem to answer with.
pub fn validate_submit(body: &[u8]) -> Result<SubmitRequest, Problem> {
    let members: Members = serde_json::from_slice(body).map_err(|error| malformed(&error))?;
    let mut reader = Reader::default();
    let mut seen: Vec<String> = Vec::new();
    for (name, value) in members.0 {
        if seen.contains(&name) {
            reader.error(&member("", &name), "duplicate", "stands there twice");
        } else {
            reader.member(&name, value);
            seen.push(name);
        }
        if reader.errors.len() >= crate::problem::FIELD_ERRORS_MAX {
            break;
        }
    }
    reader.finish(&seen)
}

/// The problem of a body that is not JSON, or not an object.
fn malformed(error: &serde_json::Error) -> Problem {
    let (line, column) = (error.line(), error.column());
    let what = if error.is_data() {
        "is not a JSON object"
    } else {
        "is not valid JSON"
    };
    let detail = format!("The body {what} (line {line}, column {column}).");
    Problem::new(Code::JobValidationFailed, detail)
}

impl Reader {
    fn member(&mut self, name: &str, value: Box<RawValue>) {
        match name {
            "type" => self.read_type(&value),
            "payload" => self.payload = Some(value),
            "requires_confirmation" => {
                let read = self.read(
                    &value,
                    "/requires_confirmation",
                    "type",
                    "must be a boolean",
                );
                self.requires_confirmation = read.unwrap_or_default();
            }
            "confirmation" => {
                let rule = "must be \"batch\" or \"individual\"";
                let read = self.read(&value, "/confirmation", "enum", rule);
                self.confirmation = read.unwrap_or_default();
            }
            "submitter" => self.read_submitter(&value),
            "priority" => {
                let rule = "must be an integer from 1 to 9";
                self.priority = self.read(&value, "/priority", "range", rule);
            }
            "metadata" => self.read_metadata(&value),
            other => self.error(&member("", other), "unknown", "is not a known member"),
        }
    }

    fn read<T: DeserializeOwned>(
        &mut self,
        value: &RawValue,
        pointer: &str,
        code: &str,
        rule: &str,
    ) -> Option<T> {
        let read = serde_json::from_str(value.get()).ok();
        if read.is_none() {
            self.error(pointer, code, rule);
        }
        read
    }

    fn read_type(&mut self, value: &RawValue) {
        let Some(text) = self.read::<String>(value, "/type", "type", "must be a string") else {
            return;
        };
        self.job_type = text.parse().ok();
        if self.job_type.is_none() {
            let known = JobType::ALL.map(JobType::as_str).join(", ");
            self.error("/type", "enum", &format!("must be one of: {known}"));
        }
    }

    fn read_submitter(&mut self, value: &RawValue) {
        let rule = "must be an EVM address: 0x and 40 hexadecimal digits";
        let Some(text) = self.read::<String>(value, "/submitter", "type", rule) else {
            return;
        };
        // A mixed-case address carries a checksum, which guards against typing errors.
        let digits = text.strip_prefix("0x").unwrap_or_default();
        let mixed = digits.bytes().any(|b| b.is_ascii_lowercase())
            && digits.bytes().any(|b| b.is_ascii_uppercase());
        let address = (digits.len() == 40)
            .then(|| text.parse::<Address>().ok())
            .flatten();
        match address {
            None => self.error("/submitter", "format", rule),
            Some(address) if mixed && address.to_checksum(None) != text => {
                self.error("/submitter", "checksum", "has a wrong checksum (EIP-55)");
            }
            found => self.submitter = found,
        }
    }

    fn read_metadata(&mut self, value: &RawValue) {
        let rule = "must be an object of strings";
        let Some(map) = self.read::<BTreeMap<String, String>>(value, "/metadata", "type", rule)
        else {
            return;
        };
        let bytes: usize = map
            .iter()
            .map(|(name, value)| name.len() + value.len())
            .sum();
        if bytes > METADATA_MAX_BYTES {
            let rule = format!("must be at most {METADATA_MAX_BYTES} bytes together");
            self.error("/metadata", "size", &rule);
        }
        // Postgres cannot keep it in JSON.
        if map
            .iter()
            .any(|(name, value)| name.contains('\0') || value.contains('\0'))
        {
            self.error("/metadata", "format", "must not contain U+0000");
        }
        self.metadata = map;
    }

    fn finish(mut self, seen: &[String]) -> Result<SubmitRequest, Problem> {
        for required in ["type", "payload"] {
            if !seen.iter().any(|name| name == required) {
                self.error(&member("", required), "required", "is required");
            }
        }
        if let (Some(job_type), Some(payload)) = (self.job_type, &self.payload) {
            match serde_json::from_str::<Value>(payload.get()) {
                Ok(value) => {
                    let broken = job_type::validate(job_type, &value).err();
                    self.errors.extend(broken.into_iter().flatten());
                }
                Err(_) => self.error("/payload", "depth", "is nested too deeply"),
            }
        }
        match (self.job_type, self.payload) {
            (Some(job_type), Some(payload)) if self.errors.is_empty() => Ok(SubmitRequest {
                job_type,
                payload,
                requires_confirmation: self.requires_confirmation,
                confirmation: self.confirmation,
                submitter: self.submitter,
                priority: self.priority,
                metadata: self.metadata,
            }),
            _ => {
                Err(Problem::new(Code::JobValidationFailed, "See errors.").with_errors(self.errors))
            }
        }
    }

    fn error(&mut self, pointer: &str, code: &str, detail: &str) {
        self.errors.push(FieldError::new(pointer, code, detail));
    }
}

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Members;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut members = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    members.push(entry);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Collect)
    }
}

impl Priority {
    /// The priority as a number.
    #[must_use]
    pub const fn get(self) -> u8 {
        self.0
    }
}

impl TryFrom<u8> for Priority {
    type Error = PriorityError;

    fn try_from(number: u8) -> Result<Self, PriorityError> {
        if (1..=9).contains(&number) {
            Ok(Self(number))
        } else {
            Err(PriorityError)
        }
    }
}

impl<'de> Deserialize<'de> for Priority {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::try_from(u8::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

impl PartialSchema for Priority {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::Integer)
            .minimum(Some(1))
            .maximum(Some(9))
            .into()
    }
}

impl ToSchema for Priority {
    fn name() -> Cow<'static, str> {
        Cow::Borrowed("Priority")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(body: &str) -> Vec<(String, String)> {
        let problem = validate_submit(body.as_bytes()).unwrap_err();
        assert_eq!(problem.code(), Code::JobValidationFailed);
        let errors = problem.details().errors.clone();
        errors
            .into_iter()
            .map(|error| (error.pointer, error.code))
            .collect()
    }

    fn error(pointer: &str, code: &str) -> (String, String) {
        (pointer.to_owned(), code.to_owned())
    }

    #[test]
    fn a_payload_keeps_its_exact_bytes() {
        let body = r#" { "type" : "digest", "payload" :  {"text" : "ä\u0041 1e2"} } "#;
        let request = validate_submit(body.as_bytes()).unwrap();
        assert_eq!(request.payload.get(), r#"{"text" : "ä\u0041 1e2"}"#);
        assert_eq!(request.confirmation, ConfirmationMode::Batch);
        assert!(!request.requires_confirmation);
    }

    #[test]
    fn every_member_is_read() {
        let body = r#"{"type":"sleep","payload":{"milliseconds":5},"requires_confirmation":true,
            "confirmation":"individual","priority":9,"metadata":{"a":"b"},
            "submitter":"0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed"}"#;
        let request = validate_submit(body.as_bytes()).unwrap();
        assert!(request.requires_confirmation);
        assert_eq!(request.confirmation, ConfirmationMode::Individual);
        assert_eq!(request.priority.map(Priority::get), Some(9));
        assert_eq!(request.metadata["a"], "b");
        let json = serde_json::to_string(&request).unwrap();
        assert_eq!(
            validate_submit(json.as_bytes()).unwrap().submitter,
            request.submitter
        );
    }

    #[test]
    fn every_error_is_named_at_once() {
        let body = r#"{"type":"fly","surprise":1,"requires_confirmation":"yes","priority":10,
            "confirmation":"never","submitter":"0x12","metadata":{"a":1}}"#;
        assert_eq!(
            errors(body),
            [
                error("/type", "enum"),
                error("/surprise", "unknown"),
                error("/requires_confirmation", "type"),
                error("/priority", "range"),
                error("/confirmation", "enum"),
                error("/submitter", "format"),
                error("/metadata", "type"),
                error("/payload", "required"),
            ],
        );
    }

    #[test]
    fn a_missing_or_wrong_member_is_named() {
        assert_eq!(
            errors("{}"),
            [error("/type", "required"), error("/payload", "required")]
        );
        let sleep = r#"{"type":"sleep","payload":{}}"#;
        assert_eq!(errors(sleep), [error("/payload/milliseconds", "required")]);
        let twice = r#"{"type":"fail","payload":{},"payload":{"times":1}}"#;
        assert_eq!(errors(twice), [error("/payload", "duplicate")]);
        let typo = r#"{"type":"fail","payload":{},
            "submitter":"0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAeD"}"#;
        assert_eq!(errors(typo), [error("/submitter", "checksum")]);
        let large = format!(
            r#"{{"type":"fail","payload":{{}},"metadata":{{"a":"{}"}}}}"#,
            "x".repeat(METADATA_MAX_BYTES),
        );
        assert_eq!(errors(&large), [error("/metadata", "size")]);
        let deep = format!(
            r#"{{"type":"fail","payload":{}{}}}"#,
            "[".repeat(200),
            "]".repeat(200),
        );
        assert_eq!(errors(&deep), [error("/payload", "depth")]);
    }

    #[test]
    fn what_is_no_json_object_is_refused_with_its_place() {
        for (body, place) in [
            ("{\"type\":\n  oops}", "line 2, column 3"),
            ("[]", "line 1, column "),
            ("", "line 1, column 0"),
            ("{} {}", "line 1, column 4"),
        ] {
            let problem = validate_submit(body.as_bytes()).unwrap_err();
            let detail = problem.details().detail.clone().unwrap();
            assert!(detail.contains(place), "{body:?}: {detail}");
        }
        assert!(validate_submit(b"{\"type\":\"\xff\"}").is_err());
    }

    #[test]
    fn many_errors_are_cut_short() {
        let members: Vec<_> = (0..100).map(|n| format!("\"m{n}\":0")).collect();
        let count = errors(&format!("{{{}}}", members.join(","))).len();
        assert_eq!(count, crate::problem::FIELD_ERRORS_MAX);
    }
}
