//! Whole answers of our own: their usage is recorded first, then what is on every answer is added.

use std::mem;

use bytes::Bytes;
use contracts::{
    api::health::HealthStatus,
    problem::{Code, Problem},
};
use http::{HeaderValue, StatusCode, Version, header};
use pingora::{Error, ErrorType, http::ResponseHeader, proxy::Session};
use tracing::{error, warn};

use crate::{
    ctx::{Ctx, Usage},
    headers, idempotency, pages,
    proxy::Gateway,
    reject,
    route::Page,
    sight::path::shown,
    usage,
};

impl Gateway {
    /// Sends a whole answer, with what is on every one, after its usage is recorded.
    pub(crate) async fn answer(
        &self,
        session: &mut Session,
        ctx: &mut Ctx,
        mut header: ResponseHeader,
        body: Bytes,
    ) -> pingora::Result<()> {
        ctx.status = header.status.as_u16();
        ctx.response_bytes = body.len() as u64;
        if !self.record(ctx) {
            let problem = unavailable("Usage cannot be recorded at the moment.");
            return self.refuse(session, ctx, problem).await;
        }
        self.decorate(&mut header, ctx)?;
        send(session, ctx, header, body).await
    }

    /// Sends a problem.
    pub(crate) async fn refuse(
        &self,
        session: &mut Session,
        ctx: &mut Ctx,
        problem: Problem,
    ) -> pingora::Result<()> {
        let path = shown(ctx.route, session.req_header().uri.path());
        let problem = problem.at(path, Some(ctx.request_id), self.clock.now());
        let body = Bytes::from(problem.to_json_bytes());
        ctx.status = problem.status().as_u16();
        ctx.code = Some(problem.code());
        ctx.response_bytes = body.len() as u64;
        // A refusal that cannot be recorded is given all the same: it costs nothing to miss it.
        self.record(ctx);
        let mut header = ResponseHeader::build(problem.status(), None)?;
        for (name, value) in problem.headers() {
            header.insert_header(name, value)?;
        }
        self.decorate(&mut header, ctx)?;
        send(session, ctx, header, body).await
    }

    /// Shows one of our own pages.
    pub(crate) async fn show(
        &self,
        session: &mut Session,
        ctx: &mut Ctx,
        page: Page,
    ) -> pingora::Result<()> {
        let mut header = ResponseHeader::build(StatusCode::OK, None)?;
        let (media, body) = match page {
            Page::Health => {
                let health = self.health.load();
                if health.status == HealthStatus::Unhealthy {
                    header.set_status(StatusCode::SERVICE_UNAVAILABLE)?;
                }
                let json = serde_json::to_vec(&**health).expect("health has a JSON form");
                ("application/json", Bytes::from(json))
            }
            Page::OpenApi => ("application/json", self.pages.openapi.clone()),
            Page::Docs => ("text/html; charset=utf-8", self.pages.docs.clone()),
        };
        header.insert_header(header::CONTENT_TYPE, media)?;
        if page != Page::Health {
            header.insert_header(header::CACHE_CONTROL, pages::CACHE_CONTROL)?;
        }
        if page == Page::Docs {
            let policy = self.pages.docs_policy.clone();
            header.insert_header(header::CONTENT_SECURITY_POLICY, policy)?;
        }
        self.answer(session, ctx, header, body).await
    }

    /// An upstream that does not believe our assertion is a failure of ours, not the client's.
    pub(crate) fn check_belief(answer: &ResponseHeader, ctx: &Ctx) -> pingora::Result<()> {
        if answer.status != StatusCode::UNAUTHORIZED {
            return Ok(());
        }
        let upstream = ctx.forward()?.upstream.as_str();
        error!(upstream, request.id = %ctx.request_id, "the upstream refuses our assertion");
        Err(Error::new_up(ErrorType::HTTPStatus(502)))
    }

    pub(crate) fn decorate(&self, answer: &mut ResponseHeader, ctx: &Ctx) -> pingora::Result<()> {
        headers::complete(answer, ctx.request_id, |headers| {
            if let Some(verdict) = &ctx.verdict {
                for (name, value) in verdict.fields(self.clock.now()) {
                    headers.insert(name, value);
                }
            }
            if let Some(used) = &ctx.quota {
                // Lists may stand in several fields of a name (RFC 9651 section 4.2).
                for (name, value) in used.fields(self.clock.now()) {
                    headers.append(name, value);
                }
            }
            if let Some(rule) = &ctx.rule {
                rule.announce(headers);
            }
            if ctx.replayed {
                headers.insert(idempotency::REPLAYED, HeaderValue::from_static("true"));
            }
        })
    }

    /// Writes the usage record, once a request; whether it was written, or none is due.
    pub(crate) fn record(&self, ctx: &mut Ctx) -> bool {
        if ctx.usage != Usage::Due {
            return true;
        }
        let (Some(principal), Some(route)) = (&ctx.principal, ctx.route()) else {
            return true;
        };
        let request = usage::Admitted {
            request_id: ctx.request_id,
            arrived_at: ctx.arrived_at,
            took: ctx.started.elapsed(),
            principal,
            route,
            status: ctx.status,
            request_bytes: ctx.request_bytes,
            response_bytes: ctx.response_bytes,
            replayed: ctx.replayed,
        };
        match usage::record(&self.spool, &request) {
            Ok(()) => {
                ctx.usage = Usage::Recorded;
                true
            }
            Err(cause) => {
                warn!(error = %cause, request.id = %ctx.request_id, "usage is not recorded");
                false
            }
        }
    }
}

/// Sends a whole answer. Over HTTP/2 it may wait long after the request has ended, and counts for
/// as long.
async fn send(
    session: &mut Session,
    ctx: &mut Ctx,
    header: ResponseHeader,
    mut body: Bytes,
) -> pingora::Result<()> {
    if session.req_header().version == Version::HTTP_2 {
        body = mem::take(&mut ctx.hold).around(body);
    }
    reject::send(session, header, body).await
}

/// The problem of something that may be there again in a second.
pub(crate) fn unavailable(detail: &str) -> Problem {
    Problem::new(Code::ServiceUnavailable, detail).with_retry_after(1)
}
