//! The guard in front of a real router.

use axum::{
    Router,
    body::{Body, to_bytes},
    http::{Method, Request, StatusCode},
    response::Response,
    routing::get,
};
use contracts::{
    assertion::{self, Audience, Claims, Role, Scope, sha256_hex},
    id::{JobId, RequestId, TenantId},
    problem::Problem,
    server::{BODY_MAX_BYTES, Guard, Json, Path, Principal, Query},
};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};
use tower::ServiceExt as _;

const KEY: [u8; 32] = [7; 32];

fn now() -> Timestamp {
    "2026-01-02T03:04:05Z".parse().unwrap()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wish {
    count: u32,
}

fn router() -> Router {
    let routes = Router::new()
        .route(
            "/wish",
            get(async |principal: Principal, Query(wish): Query<Wish>| {
                Json(json!({"tenant": principal.tenant(), "count": wish.count}))
            })
            .post(async |Json(wish): Json<Wish>| Json(json!({"count": wish.count}))),
        )
        .route(
            "/jobs/{id}",
            get(async |Path(job): Path<JobId>| job.to_string()),
        )
        .route("/broken", get(async || Problem::internal()));
    Guard::new(Audience::Jobs, &KEY, now, |_, _| ()).protect(routes)
}

fn claims(method: &str, path: &str, body: &[u8]) -> Claims {
    Claims {
        aud: Audience::Jobs,
        tenant: TenantId::generate(now()),
        subject: "user_1".parse().unwrap(),
        scopes: vec![Scope::JobsRead],
        role: Role::Developer,
        team: None,
        submitter: None,
        active_jobs_limit: None,
        priority: 5,
        address: "127.0.0.1".parse().unwrap(),
        request_id: RequestId::generate(now()),
        traceparent: None,
        method: method.to_owned(),
        path: path.to_owned(),
        body_sha256: sha256_hex(body),
        expires_at: now().as_second() + 30,
    }
}

async fn send(request: Request<Body>) -> Response {
    router().oneshot(request).await.unwrap()
}

async fn ask(claims: &Claims, body: impl Into<Vec<u8>>) -> (StatusCode, Value, Response) {
    let request = Request::builder()
        .method(Method::from_bytes(claims.method.as_bytes()).unwrap())
        .uri(&claims.path)
        .header("content-type", "application/json; charset=utf-8")
        .header(assertion::HEADER, assertion::sign(claims, &KEY))
        .body(Body::from(body.into()))
        .unwrap();
    read(send(request).await).await
}

async fn read(response: Response) -> (StatusCode, Value, Response) {
    let (parts, body) = response.into_parts();
    let body = to_bytes(body, 1 << 20).await.unwrap();
    if let Some(length) = parts.headers.get("content-length") {
        assert_eq!(length, &body.len().to_string());
    }
    let json = serde_json::from_slice(&body).unwrap_or(Value::Null);
    (
        parts.status,
        json,
        Response::from_parts(parts, Body::empty()),
    )
}

#[tokio::test]
async fn a_stated_request_reaches_its_handler_with_its_principal() {
    let claims = claims("GET", "/wish?count=3", b"");
    let (status, answer, _) = ask(&claims, "").await;
    assert_eq!(status, 200);
    assert_eq!(answer, json!({"tenant": claims.tenant, "count": 3}));
    let body = br#"{"count":4}"#;
    let (status, answer, _) = ask(&self::claims("POST", "/wish", body), body).await;
    assert_eq!((status, answer), (StatusCode::OK, json!({"count": 4})));
}

#[tokio::test]
async fn without_a_valid_statement_nothing_is_answered_but_401() {
    let bare = Request::builder()
        .uri("/wish?count=3")
        .body(Body::empty())
        .unwrap();
    let (status, answer, response) = read(send(bare).await).await;
    assert_eq!(
        (status, &answer["code"]),
        (StatusCode::UNAUTHORIZED, &json!("INVALID_TOKEN"))
    );
    assert_eq!(answer["instance"], "/wish");
    assert_eq!(answer["timestamp"], "2026-01-02T03:04:05Z");
    assert_eq!(response.headers()["www-authenticate"], "Bearer");
    let other_body = ask(&claims("POST", "/wish", b"{}"), r#"{"count":4}"#).await;
    assert_eq!(other_body.0, 401);
    let mut expired = claims("GET", "/wish?count=3", b"");
    expired.expires_at = now().as_second();
    assert_eq!(ask(&expired, "").await.0, 401);
}

#[tokio::test]
async fn every_refusal_is_a_whole_problem() {
    let job = "/jobs/job_1";
    let cases = [
        ("GET", "/nowhere", "", 404, "NOT_FOUND"),
        ("PUT", "/wish", "", 405, "METHOD_NOT_ALLOWED"),
        ("GET", job, "", 404, "NOT_FOUND"),
        ("GET", "/wish?count=x", "", 400, "INVALID_REQUEST"),
        ("GET", "/wish?count=1&more=1", "", 400, "INVALID_REQUEST"),
        ("POST", "/wish", "{", 400, "INVALID_REQUEST"),
        ("POST", "/wish", "{\"count\":-1}", 400, "INVALID_REQUEST"),
        ("GET", "/broken", "", 500, "INTERNAL"),
    ];
    for (method, path, body, status, code) in cases {
        let claims = claims(method, path, body.as_bytes());
        let (found, answer, response) = ask(&claims, body).await;
        assert_eq!(
            (found.as_u16(), &answer["code"]),
            (status, &json!(code)),
            "{method} {path}"
        );
        assert_eq!(answer["request_id"], json!(claims.request_id));
        assert_eq!(
            response.headers()["content-type"],
            "application/problem+json"
        );
        let allow = response
            .headers()
            .get("allow")
            .map(|value| value.to_str().unwrap());
        assert_eq!(allow, (status == 405).then_some("GET,HEAD,POST"));
    }
}

#[tokio::test]
async fn a_body_is_bounded_and_must_be_json() {
    let large = vec![b' '; BODY_MAX_BYTES + 1];
    let (status, answer, _) = ask(&claims("POST", "/wish", &large), large).await;
    assert_eq!(
        (status, &answer["code"]),
        (StatusCode::PAYLOAD_TOO_LARGE, &json!("PAYLOAD_TOO_LARGE"))
    );
    assert_eq!(answer["max_size"], json!(BODY_MAX_BYTES));
    let claims = claims("POST", "/wish", b"{}");
    let request = Request::post("/wish")
        .header("content-type", "text/plain")
        .header(assertion::HEADER, assertion::sign(&claims, &KEY))
        .body(Body::from("{}"))
        .unwrap();
    let (status, answer, _) = read(send(request).await).await;
    let code = &json!("INVALID_CONTENT_TYPE");
    assert_eq!(
        (status, &answer["code"]),
        (StatusCode::UNSUPPORTED_MEDIA_TYPE, code)
    );
}

#[tokio::test]
async fn one_reads_ones_own_ones_teams_and_as_admin_every_job_and_ends_only_ones_own() {
    let sees = async |scopes: &[Scope], team: Option<&str>| {
        let mut claims = claims("GET", "/see", b"");
        claims.scopes = scopes.to_vec();
        claims.team = team.map(|team| team.parse().unwrap());
        let routes = Router::new().route(
            "/see",
            get(async |principal: Principal| {
                Json([
                    principal.may_read_job("user_1", None),
                    principal.may_read_job("user_2", Some("blue")),
                    principal.may_read_job("user_2", Some("red")),
                    principal.may_read_job("user_2", None),
                    principal.may_cancel_job("user_1"),
                    principal.may_cancel_job("user_2"),
                ])
            }),
        );
        let guard = Guard::new(Audience::Jobs, &KEY, now, |_, _| ());
        let request = Request::get("/see")
            .header(assertion::HEADER, assertion::sign(&claims, &KEY))
            .body(Body::empty())
            .unwrap();
        let (_, answer, _) = read(guard.protect(routes).oneshot(request).await.unwrap()).await;
        serde_json::from_value::<[bool; 6]>(answer).unwrap()
    };
    let read = Scope::JobsRead;
    let (yes, no) = (true, false);
    let own = [yes, no, no, no, no, no];
    assert_eq!(sees(&[read], Some("blue")).await, own);
    let team = [read, Scope::JobsReadTeam];
    assert_eq!(
        sees(&team, Some("blue")).await,
        [yes, yes, no, no, no, no],
        "a team's members end only their own"
    );
    assert_eq!(sees(&team, None).await, own);
    let submitter = sees(&[Scope::JobsSubmit], None).await;
    assert_eq!(submitter, [yes, no, no, no, yes, no]);
    assert_eq!(sees(&[Scope::JobsAdmin], None).await, [yes; 6]);
}
