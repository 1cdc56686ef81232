//! Paths as they are shown, in log lines and problems: nobody knows what a client wrote in one, and
//! it may be a secret.

use contracts::id::{EndpointId, JobId, KeyId, MessageId};

use crate::route::ROUTES;

/// What is shown of paths that no route has.
const UNKNOWN: &str = "/...";

/// What of a path may be shown: all of it, where its variable parts are identifiers of ours, and
/// else its route's template.
#[must_use]
pub fn shown(route: Option<usize>, path: &str) -> &str {
    let Some(route) = route.and_then(|index| ROUTES.get(index)) else {
        return UNKNOWN;
    };
    let template = route.template;
    let mut parts = template.split('/').zip(path.split('/'));
    if parts.all(|(part, said)| part == said || (part.starts_with('{') && is_ours(said))) {
        path
    } else {
        template
    }
}

fn is_ours(part: &str) -> bool {
    part.parse::<JobId>().is_ok()
        || part.parse::<MessageId>().is_ok()
        || part.parse::<EndpointId>().is_ok()
        || part.parse::<KeyId>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_shown_as_far_as_it_is_ours() {
        let job = format!(
            "/v1/jobs/{}/proof",
            JobId::generate(jiff::Timestamp::UNIX_EPOCH)
        );
        let of = |template: &str| ROUTES.iter().position(|route| route.template == template);
        for (template, path, expected) in [
            ("/v1/jobs", "/v1/jobs", "/v1/jobs"),
            ("/v1/jobs/{job_id}/proof", &job, &job),
            (
                "/v1/jobs/{job_id}/proof",
                "/v1/jobs/a/proof",
                "/v1/jobs/{job_id}/proof",
            ),
            (
                "/v1/api-keys/{key_id}",
                "/v1/api-keys/jsk_x_y",
                "/v1/api-keys/{key_id}",
            ),
            ("", "/v1/secret", UNKNOWN),
        ] {
            assert_eq!(shown(of(template), path), expected);
        }
    }
}
