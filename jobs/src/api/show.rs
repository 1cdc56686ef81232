//! `GET /v1/jobs/{job_id}`

use axum::extract::State;
use contracts::{
    api::jobs::JobView,
    problem::Problem,
    server::{Json, Path, Principal},
};

use super::{Api, require_reader, view::view};

/// Everything about a job.
pub(super) async fn show(
    State(api): State<Api>,
    principal: Principal,
    Path(id): Path<String>,
) -> Result<Json<JobView>, Problem> {
    require_reader(&principal)?;
    let record = api.visible(&principal, &id).await?;
    Ok(Json(view(record)?))
}
