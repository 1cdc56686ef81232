//! The OpenAPI document: every route of the public interface, with the schemas that the types of
//! [`crate::api`] derive. The gateway serves the checked-in copy.

use utoipa::openapi::{
    ComponentsBuilder, Info, License, OpenApi, OpenApiBuilder, Paths, Ref, RefOr, Schema,
    SecurityRequirement,
    schema::AnyOfBuilder,
    security::{ApiKey, ApiKeyValue, Http, HttpAuthScheme, SecurityScheme},
    tag::Tag,
};

use crate::job_type::JobType;

mod operation;
mod routes;

/// The document as checked in and served: what [`openapi`] returns, pretty-printed.
pub const OPENAPI_JSON: &str = include_str!("../openapi/jobseal.v1.json");

const DESCRIPTION: &str = "Asynchronous jobs whose outcomes are sealed on an EVM chain.\n\n\
    Errors are problem details (RFC 9457) with a `code` of a closed list. Times are RFC 3339 in \
    UTC. Quantities and amounts are decimal strings. Lists are pages: give `next_cursor` as \
    `cursor` for the next one.\n\n\
    Any request may carry `traceparent` and `tracestate` (W3C Trace Context). Those of a tenant \
    that must sign its requests carry `Signature-Input` and `Signature` (RFC 9421, HMAC-SHA256), \
    and with a body `Content-Digest` (RFC 9530, SHA-256).";

/// The document, derived from the types.
#[must_use]
pub fn openapi() -> OpenApi {
    let operations = routes::all();
    let mut components = ComponentsBuilder::new()
        .security_scheme("jwt", jwt())
        .security_scheme("api_key", api_key());
    for job_type in JobType::ALL {
        components = components.schema(payload_name(job_type), payload_schema(job_type));
    }
    let mut paths = Paths::new();
    for operation in operations {
        components = components.schemas_from_iter(operation.schemas());
        operation.add_to(&mut paths);
    }
    let mut info = Info::new("Jobseal", "1");
    info.description = Some(DESCRIPTION.to_owned());
    let mut license = License::new("Apache-2.0");
    license.identifier = Some("Apache-2.0".to_owned());
    info.license = Some(license);
    OpenApiBuilder::new()
        .info(info)
        .tags(Some(
            ["jobs", "webhooks", "billing", "keys", "service"].map(Tag::new),
        ))
        .security(Some(
            ["jwt", "api_key"].map(|name| SecurityRequirement::new(name, Vec::<String>::new())),
        ))
        .paths(paths)
        .components(Some(components.build()))
        .build()
}

fn jwt() -> SecurityScheme {
    let mut scheme = Http::new(HttpAuthScheme::Bearer);
    scheme.bearer_format = Some("JWT".to_owned());
    scheme.description =
        Some("A token of the configured issuer, or an API key (`jsk_…`).".to_owned());
    SecurityScheme::Http(scheme)
}

fn api_key() -> SecurityScheme {
    let value = ApiKeyValue::with_description("X-API-Key", "An API key: `jsk_…`.");
    SecurityScheme::ApiKey(ApiKey::Header(value))
}

/// The schema of a submit request's payload: that of some job type.
pub(crate) fn payload() -> RefOr<Schema> {
    let any = JobType::ALL
        .into_iter()
        .fold(AnyOfBuilder::new(), |any, job_type| {
            any.item(Ref::from_schema_name(payload_name(job_type)))
        });
    let description = "Must satisfy the schema of its type. Hashed and kept exactly as sent.";
    any.description(Some(description)).into()
}

fn payload_name(job_type: JobType) -> &'static str {
    match job_type {
        JobType::Digest => "DigestPayload",
        JobType::Sleep => "SleepPayload",
        JobType::Fail => "FailPayload",
    }
}

fn payload_schema(job_type: JobType) -> Schema {
    serde_json::from_value(job_type.schema().clone()).expect("a test reads each schema")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;

    #[test]
    fn the_checked_in_document_is_what_the_types_say() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/openapi/jobseal.v1.json");
        let derived = openapi().to_pretty_json().unwrap() + "\n";
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(path, &derived).unwrap();
        }
        let checked_in = std::fs::read_to_string(path).unwrap();
        assert!(checked_in == derived, "{path} is stale: run with UPDATE=1");
    }

    #[test]
    fn every_reference_leads_somewhere_and_operation_ids_are_unique() {
        let document = serde_json::to_value(openapi()).unwrap();
        assert_eq!(document["openapi"], "3.1.0");
        let mut references = BTreeSet::new();
        let mut ids = Vec::new();
        walk(&document, &mut |name, value| match (name, value.as_str()) {
            ("$ref", Some(target)) => drop(references.insert(target.to_owned())),
            ("operationId", Some(id)) => ids.push(id.to_owned()),
            _ => {}
        });
        assert!(references.len() > 20);
        for target in references {
            let pointer = target.strip_prefix('#').unwrap();
            assert!(document.pointer(pointer).is_some(), "{target}");
        }
        let unique: BTreeSet<_> = ids.iter().collect();
        assert_eq!((unique.len(), ids.len()), (27, 27));
    }

    #[test]
    fn the_documents_payload_schemas_are_those_that_validate() {
        for job_type in JobType::ALL {
            let mut schema = job_type.schema().clone();
            schema.as_object_mut().unwrap().remove("$schema");
            let shown = serde_json::to_value(payload_schema(job_type)).unwrap();
            assert_eq!(shown, schema);
        }
    }

    fn walk(value: &Value, visit: &mut impl FnMut(&str, &Value)) {
        match value {
            Value::Object(members) => members.iter().for_each(|(name, value)| {
                visit(name, value);
                walk(value, visit);
            }),
            Value::Array(items) => items.iter().for_each(|item| walk(item, visit)),
            _ => {}
        }
    }
}
