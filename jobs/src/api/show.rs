//! `GET /v1/jobs/{job_id}`

use axum::extract::State;
use contracts::{
    api::jobs::JobView,
    assertion::Scope,
    problem::Problem,
    server::{Json, Path, Principal},
};

use super::{Api, view::view};

/// Everything about a job.
pub(super) async fn show(
    State(api): State<Api>,
    principal: Principal,
    Path(id): Path<String>,
) -> Result<Json<JobView>, Problem> {
    principal.require_one_of(&Scope::READ_JOBS)?;
    let record = api.visible(&principal, &id).await?;
    Ok(Json(view(record)?))
}
