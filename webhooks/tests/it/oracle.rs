//! Every signature is checked by somebody else's verifier: the crate, and the npm package.

use std::{
    io::Write as _,
    process::{Command, Stdio},
};

use reqwest::StatusCode;
use serde_json::json;
use standardwebhooks::Webhook;

use crate::app::{App, Receiver, Told, completion};

const NPM_VERIFIER: &str = r#"
const { Webhook } = require("standardwebhooks");
const { secret, headers, body } = JSON.parse(require("fs").readFileSync(0, "utf8"));
const verifier = new Webhook(secret);
verifier.verify(body, headers);
let refused = false;
try { verifier.verify(body + " ", headers); } catch { refused = true; }
if (!refused) throw new Error("a changed body was accepted");
console.log("verified");
"#;

/// Runs the npm package `standardwebhooks` on one webhook.
fn npm_verifies(secret: &str, told: &Told) {
    let project = concat!(env!("CARGO_MANIFEST_DIR"), "/../contracts/solidity");
    let mut node = Command::new("node")
        .args(["-e", NPM_VERIFIER])
        .current_dir(project)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("node is installed: ./ops/test does it");
    let headers = json!({
        "webhook-id": told.header("webhook-id"),
        "webhook-timestamp": told.header("webhook-timestamp"),
        "webhook-signature": told.header("webhook-signature"),
    });
    let input = json!({ "secret": secret, "headers": headers, "body": told.body });
    node.stdin
        .take()
        .unwrap()
        .write_all(input.to_string().as_bytes())
        .unwrap();
    let output = node.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(
        said.trim(),
        "verified",
        "run `npm ci` in contracts/solidity?"
    );
}

fn crate_verifies(secret: &str, told: &Told) -> bool {
    Webhook::new(secret)
        .unwrap()
        .verify(told.body.as_bytes(), &told.headers)
        .is_ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_published_verifiers_accept_old_and_new_secret_while_they_overlap() {
    let app = App::start().await;
    let receiver = Receiver::start(&[]).await;
    let _worker = app.worker();
    let created = app
        .write(
            "POST",
            "/v1/webhooks/endpoints",
            json!({ "url": receiver.url() }),
        )
        .await;
    let first = created["secret"].as_str().unwrap();
    app.tell(&[completion(app.tenant)]).await;
    let told = receiver.is_told(1).await;
    assert!(crate_verifies(first, &told[0]));
    npm_verifies(first, &told[0]);

    let id = created["endpoint_id"].as_str().unwrap();
    let path = format!("/v1/webhooks/endpoints/{id}/rotate-secret");
    let rotated = app
        .write("POST", &path, json!({ "overlap_seconds": 3600 }))
        .await;
    let second = rotated["secret"].as_str().unwrap();
    app.tell(&[completion(app.tenant)]).await;
    let told = receiver.is_told(2).await;
    assert_eq!(told[1].header("webhook-signature").split(' ').count(), 2);
    for secret in [first, second] {
        assert!(crate_verifies(secret, &told[1]));
        npm_verifies(secret, &told[1]);
    }

    let rotated = app
        .write("POST", &path, json!({ "overlap_seconds": 0 }))
        .await;
    let third = rotated["secret"].as_str().unwrap();
    app.tell(&[completion(app.tenant)]).await;
    let told = receiver.is_told(3).await;
    assert!(crate_verifies(third, &told[2]));
    for ended in [first, second] {
        assert!(!crate_verifies(ended, &told[2]));
    }
    let scopes = [contracts::assertion::Scope::WebhooksWrite];
    let too_long = Some(json!({ "overlap_seconds": 604_801 }));
    let (status, answer) = app
        .request(app.tenant, &scopes, "POST", &path, too_long)
        .await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert_eq!(answer["errors"][0]["pointer"], "/overlap_seconds");
}
