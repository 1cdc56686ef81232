//! `DELETE /v1/jobs/{job_id}`

use axum::extract::State;
use contracts::{
    api::jobs::JobView,
    assertion::Scope,
    problem::{Code, Problem},
    server::{Json, Path, Principal},
};

use super::{Api, view::view};
use crate::store::Cancelled;

/// Cancels a job that has not ended, whoever computes it; cancelling twice is the same as once.
pub(super) async fn cancel(
    State(api): State<Api>,
    principal: Principal,
    Path(id): Path<String>,
) -> Result<Json<JobView>, Problem> {
    principal.require_one_of(&Scope::CANCEL_JOBS)?;
    let record = api.visible(&principal, &id).await?;
    let facts = &record.job.facts;
    if !principal.may_cancel_job(facts.subject.as_str()) {
        return Err(Problem::new(
            Code::AccessDenied,
            "The job is another's: only seen, not ended.",
        ));
    }
    let (tenant, job) = (facts.tenant, facts.id);
    if let Cancelled::TooLate(illegal) = api.store.cancel(job, api.clock.now()).await? {
        return Err(Problem::new(Code::JobNotCancellable, format!("{illegal}.")));
    }
    let record = api
        .store
        .find(tenant, job)
        .await?
        .ok_or_else(super::no_such_job)?;
    Ok(Json(view(record)?))
}
