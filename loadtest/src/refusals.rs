//! Bad input, and the answers to it: each case is sent, shown, and has to be refused as promised.

use std::path::Path;

use contracts::{
    api::jobs::{SUBMIT_MAX_BYTES, SubmitResponse},
    id::JobId,
    job_type::JobType,
    problem::Code,
};
use jiff::SignedDuration;
use tokio::time::Instant;

use crate::{
    client::{Api, Submitted},
    clock,
    exit::BadUsage,
    issuer::{Issuer, TokenClaims},
    log::{Actor, Route, Submission},
    request::{Call, Credential, body_of},
};

mod expected;

pub(crate) use expected::{Row, show};

use expected::{Expected, Sent};

/// Most requests it may take to hit the other tenant's rate limit.
const RATE_TRIES: usize = 1_000;
/// Size of the pieces of a chunked body.
const CHUNK_BYTES: usize = 64 * 1_024;

/// Who sends the bad input.
pub(crate) struct Suspects<'a> {
    /// The gateway.
    pub(crate) api: &'a Api,
    /// The tenant under test.
    pub(crate) tenant: &'a Credential,
    /// Another one, on a small plan.
    pub(crate) other: &'a Credential,
    /// A token of the tenant that expired.
    pub(crate) expired: Credential,
    /// A token of the tenant that may only read.
    pub(crate) reader: Credential,
    /// Before every idempotency key.
    pub(crate) run: String,
}

/// What the demo knows of the issuer.
pub(crate) struct TokenSource<'a> {
    /// The issuer's folder.
    pub(crate) dir: &'a Path,
    /// The claim `iss`.
    pub(crate) issuer: &'a str,
    /// The claim `aud`.
    pub(crate) audience: &'a str,
    /// The tenant's id.
    pub(crate) tenant: &'a str,
}

impl TokenSource<'_> {
    /// A token of the tenant.
    pub(crate) fn token(
        &self,
        scope: &str,
        expires_in: SignedDuration,
        actor: Actor,
    ) -> anyhow::Result<Credential> {
        let claims = TokenClaims {
            issuer: self.issuer,
            audience: self.audience,
            tenant: self.tenant,
            subject: "user_demo",
            scope,
            expires_in,
        };
        Credential::bearer(
            &Issuer::open(self.dir)?.token(&claims, clock::now())?,
            actor,
        )
    }
}

impl Suspects<'_> {
    /// Sends everything. Jobs that are accepted on the way are given to `accepted`.
    pub(crate) async fn send_all(
        &self,
        deadline: Instant,
        mut accepted: impl FnMut(JobId, Instant),
    ) -> anyhow::Result<Vec<Row>> {
        let mut rows = self.credentials().await?;
        rows.push(self.foreign_job(deadline).await?);
        rows.extend(self.bodies().await);
        rows.extend(self.sizes().await);
        rows.extend(self.same_key(&mut accepted).await?);
        rows.push(self.rate_limit().await);
        Ok(rows)
    }

    async fn credentials(&self) -> anyhow::Result<Vec<Row>> {
        let job = self.submission("credential");
        let bare = || {
            Call::post(Route::SubmitJob, "/v1/jobs", None, body_of(&job))
                .header("idempotency-key", &job.key)
        };
        let no_key = Credential::bearer(&"jsk_this_is_no_key".into(), Actor::Stranger)?;
        let wrong = self.tenant.with_wrong_secret()?;
        let expected = |code| Expected::code(401, code).header("www-authenticate");
        let token = Code::InvalidToken;
        Ok(vec![
            expected(token).row("no credential", &self.send(bare()).await),
            expected(token).row(
                "no key at all",
                &self.send(Call::submit(&no_key, &job)).await,
            ),
            expected(token).row("wrong key", &self.send(Call::submit(&wrong, &job)).await),
            expected(token).row(
                "expired JWT",
                &self.send(Call::submit(&self.expired, &job)).await,
            ),
            Expected::code(403, Code::AccessDenied).row(
                "missing scope",
                &self.send(Call::submit(&self.reader, &job)).await,
            ),
        ])
    }

    async fn foreign_job(&self, deadline: Instant) -> anyhow::Result<Row> {
        let submission = self.submission("other");
        let submitted = self.api.submit(self.other, &submission, deadline).await?;
        let Submitted::Accepted(job) = submitted else {
            anyhow::bail!("the other tenant cannot submit a job: {submitted:?}");
        };
        let path = format!("/v1/jobs/{job}");
        let sent = self
            .send(Call::get(Route::GetJob, path, Some(self.tenant)))
            .await;
        Ok(Expected::code(404, Code::JobNotFound).row("another tenant's job id", &sent))
    }

    async fn bodies(&self) -> Vec<Row> {
        let key = format!("{}-bad", self.run);
        let post = |body: &'static str| {
            Call::post(Route::SubmitJob, "/v1/jobs", Some(self.tenant), body)
                .header("idempotency-key", &key)
        };
        let invalid = |pointer| Expected::code(400, Code::JobValidationFailed).pointer(pointer);
        let good = r#"{"type":"digest","payload":{"text":"a"}}"#;
        let no_key = Call::post(Route::SubmitJob, "/v1/jobs", Some(self.tenant), good);
        vec![
            Expected::code(400, Code::JobValidationFailed).row(
                "malformed JSON",
                &self.send(post(r#"{"type":"digest","#)).await,
            ),
            invalid("/payload").row(
                "missing field",
                &self.send(post(r#"{"type":"digest"}"#)).await,
            ),
            invalid("/payload/milliseconds").row(
                "missing field of the payload",
                &self.send(post(r#"{"type":"sleep","payload":{}}"#)).await,
            ),
            invalid("/type").row(
                "unknown job type",
                &self.send(post(r#"{"type":"divine","payload":{}}"#)).await,
            ),
            Expected::code(415, Code::InvalidContentType).row(
                "wrong content type",
                &self
                    .send(post(good).header("content-type", "text/plain"))
                    .await,
            ),
            Expected::code(400, Code::IdempotencyKeyRequired)
                .row("no idempotency key", &self.send(no_key).await),
        ]
    }

    async fn sizes(&self) -> Vec<Row> {
        let body = oversized();
        let key = format!("{}-large", self.run);
        let chunks: Vec<_> = body
            .as_bytes()
            .chunks(CHUNK_BYTES)
            .map(|chunk| Ok::<_, std::io::Error>(bytes::Bytes::copy_from_slice(chunk)))
            .collect();
        let chunked = reqwest::Body::wrap_stream(futures::stream::iter(chunks));
        let too_large = || Expected::code(413, Code::PayloadTooLarge).max_size();
        let post = |body: reqwest::Body| {
            Call::post(Route::SubmitJob, "/v1/jobs", Some(self.tenant), body)
                .header("idempotency-key", &key)
        };
        vec![
            too_large().row("1 MiB + 1 byte", &self.send(post(body.into())).await),
            too_large().row("1 MiB + 1 byte, chunked", &self.send(post(chunked)).await),
        ]
    }

    async fn same_key(
        &self,
        accepted: &mut impl FnMut(JobId, Instant),
    ) -> anyhow::Result<Vec<Row>> {
        let job = self.submission("twice");
        let first = self.send(Call::submit(self.tenant, &job)).await;
        if let Ok(answer) = &first
            && answer.status == 202
        {
            accepted(answer.json::<SubmitResponse>()?.job_id, Instant::now());
        }
        let second = self.send(Call::submit(self.tenant, &job)).await;
        let other = Submission {
            payload: r#"{"text":"other"}"#.into(),
            ..job.clone()
        };
        let mismatch = self.send(Call::submit(self.tenant, &other)).await;
        let mut again = Expected::status(202)
            .header("idempotency-replayed")
            .row("same key again", &second);
        if let (Ok(first), Ok(second)) = (&first, &second) {
            again.ok &= first.body == second.body;
            again.shown = format!(
                "same answer: {}; {}",
                first.body == second.body,
                again.shown
            );
        }
        Ok(vec![
            Expected::status(202).row("a key's first use", &first),
            again,
            Expected::code(422, Code::IdempotencyMismatch).row("same key, other body", &mismatch),
        ])
    }

    async fn rate_limit(&self) -> Row {
        let mut sent = Err("never sent".to_owned());
        for _ in 0..RATE_TRIES {
            let path = "/v1/jobs?limit=1";
            sent = self
                .send(Call::get(Route::ListJobs, path, Some(self.other)))
                .await;
            if sent.as_ref().map_or(true, |answer| answer.status != 200) {
                break;
            }
        }
        Expected::code(429, Code::RateLimitExceeded)
            .header("retry-after")
            .header("ratelimit-policy")
            .header("ratelimit")
            .header("x-ratelimit-limit")
            .header("x-ratelimit-remaining")
            .header("x-ratelimit-reset")
            .row("rate limit of the other tenant", &sent)
    }

    fn submission(&self, name: &str) -> Submission {
        Submission {
            key: format!("{}-{name}", self.run),
            job_type: JobType::Digest,
            payload: r#"{"text":"bad input"}"#.into(),
            requires_confirmation: true,
        }
    }

    async fn send(&self, call: Call<'_>) -> Sent {
        self.api.call(call).await.map_err(|error| error.to_string())
    }
}

/// A well-formed request of one byte more than is accepted.
fn oversized() -> String {
    let (head, tail) = (r#"{"type":"digest","payload":{"text":""#, r#""}}"#);
    let fill = SUBMIT_MAX_BYTES + 1 - head.len() - tail.len();
    format!("{head}{}{tail}", "a".repeat(fill))
}

impl<'a> Suspects<'a> {
    /// The cast, with the tokens it needs.
    pub(crate) fn new(
        api: &'a Api,
        (tenant, other): (&'a Credential, &'a Credential),
        tokens: &TokenSource<'_>,
        run: String,
    ) -> anyhow::Result<Self> {
        if tokens.tenant.is_empty() {
            return Err(BadUsage("--tenant is empty".into()).into());
        }
        let soon = SignedDuration::from_mins(5);
        let scopes = "jobs:submit jobs:read";
        let expired = tokens.token(scopes, -soon, Actor::Stranger)?;
        let reader = tokens.token("jobs:read", soon, Actor::Tenant)?;
        Ok(Self {
            api,
            tenant,
            other,
            expired,
            reader,
            run,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oversized_body_is_one_byte_too_long_and_else_good() {
        let body = oversized();
        assert_eq!(body.len(), SUBMIT_MAX_BYTES + 1);
        contracts::api::jobs::validate_submit(body.as_bytes()).unwrap();
    }
}
