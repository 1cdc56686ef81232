//! `GET /v1/jobs`

use axum::extract::State;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use contracts::{
    api::{
        Page,
        jobs::{JobView, ListJobsQuery},
        page_size,
    },
    assertion::Scope,
    id::JobId,
    problem::{Code, Problem},
    server::{Json, Principal, Query},
};
use uuid::Uuid;

use super::{Api, view::view};
use crate::store::{Filter, Viewer};

/// The jobs the caller sees, newest first.
pub(super) async fn list(
    State(api): State<Api>,
    principal: Principal,
    Query(query): Query<ListJobsQuery>,
) -> Result<Json<Page<JobView>>, Problem> {
    principal.require_one_of(&Scope::READ_JOBS)?;
    let viewer = Viewer {
        tenant: principal.tenant(),
        everything: principal.sees_whole_tenant(),
        subject: principal.subject().clone(),
        team: principal.sees_team().cloned(),
    };
    let filter = Filter {
        status: query.status,
        job_type: query.job_type,
        before: query.cursor.as_deref().map(read_cursor).transpose()?,
    };
    let size = page_size(query.limit);
    // One more than asked tells whether there is another page.
    let mut records = api.store.list(&viewer, &filter, size + 1).await?;
    let full = records.len() > usize::try_from(size).unwrap_or(usize::MAX);
    if full {
        records.pop();
    }
    let next_cursor = records
        .last()
        .filter(|_| full)
        .map(|record| write_cursor(record.job.facts.id));
    let data = records.into_iter().map(view).collect::<Result<_, _>>()?;
    Ok(Json(Page { data, next_cursor }))
}

/// Opaque to its bearer: the last job shown. What it may reveal, they have just seen.
fn write_cursor(last: JobId) -> String {
    URL_SAFE_NO_PAD.encode(last.uuid())
}

fn read_cursor(text: &str) -> Result<JobId, Problem> {
    let bytes = URL_SAFE_NO_PAD.decode(text).ok();
    bytes
        .and_then(|bytes| Uuid::from_slice(&bytes).ok())
        .map(JobId::from_uuid)
        .ok_or_else(|| Problem::new(Code::InvalidRequest, "The cursor is not one of ours."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_survives_and_anything_else_is_refused() {
        let id = JobId::generate("2026-01-02T03:04:05Z".parse().unwrap());
        assert_eq!(read_cursor(&write_cursor(id)).unwrap(), id);
        for bad in ["", "!", "AAAA", &id.to_string()] {
            assert_eq!(
                read_cursor(bad).unwrap_err().code(),
                Code::InvalidRequest,
                "{bad}"
            );
        }
    }
}
