//! The crowd around a fault: clients that submit one job again and again, with its key, so that
//! requests are under way when a process dies and the job is still one.

use std::time::Duration;

use futures::future::try_join_all;
use tokio::time::{Instant, sleep};

use crate::{
    client::{Api, NoAnswer},
    log::Submission,
    request::{Call, Credential},
};

/// How many clients there are.
const CLIENTS: usize = 8;
/// A client's pause between an answer and its next request.
const PAUSE: Duration = Duration::from_millis(20);
/// How long the fault may take to strike; not every one cuts requests off.
const LONGEST: Duration = Duration::from_secs(3);

/// Repeats `submission` until each client met the fault, or it is over.
pub(crate) async fn press(
    api: &Api,
    credential: &Credential,
    submission: &Submission,
) -> anyhow::Result<()> {
    let until = Instant::now() + LONGEST;
    let client = async || {
        while Instant::now() < until {
            match api.call(Call::submit(credential, submission)).await {
                // The same job, or another request with its key is being worked on.
                Ok(answer) if matches!(answer.status, 202 | 409) => sleep(PAUSE).await,
                Err(NoAnswer::Log(error)) => return Err(error),
                Ok(_) | Err(_) => break,
            }
        }
        Ok(())
    };
    try_join_all((0..CLIENTS).map(|_| client())).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use axum::{Router, http::StatusCode};
    use contracts::job_type::JobType;

    use super::*;
    use crate::{
        client::Target,
        log::{Actor, read},
    };

    #[tokio::test]
    async fn every_client_repeats_the_same_job_until_it_met_the_fault() {
        let answered = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&answered);
        let routes = Router::new().fallback(move || async move {
            if count.fetch_add(1, Ordering::Relaxed) < 3 * CLIENTS {
                StatusCode::ACCEPTED
            } else {
                StatusCode::BAD_GATEWAY
            }
        });
        let target = Target::start(routes).await;
        let credential = Credential::bearer(&"secret".into(), Actor::Tenant).unwrap();
        let submission = Submission {
            key: "one".into(),
            job_type: JobType::Sleep,
            payload: r#"{"milliseconds":1}"#.into(),
            requires_confirmation: true,
        };
        press(&target.api, &credential, &submission).await.unwrap();
        let exchanges = read(target.folder.path()).unwrap();
        assert_eq!(exchanges.len(), 4 * CLIENTS);
        let failed = exchanges.iter().filter(|exchange| {
            exchange.intent.submission.as_ref() == Some(&submission)
                && exchange.answer.as_ref().and_then(|a| a.status) == Some(502)
        });
        assert_eq!(failed.count(), CLIENTS);
    }
}
