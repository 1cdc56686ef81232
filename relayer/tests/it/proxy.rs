//! An endpoint that stands before the node and may lie: what it says is the node's own answer,
//! unless the test's script says otherwise.

use std::sync::{Arc, Mutex};

use axum::{Json, Router, extract::State, routing::post};
use serde_json::{Value, json};

/// Gets the method and the parameters, which it may change on their way to the node; what it
/// returns, `{"result": …}` or `{"error": …}`, is answered instead.
type Script = Box<dyn FnMut(&str, &mut Value) -> Option<Value> + Send>;

#[derive(Clone)]
pub(crate) struct Proxy {
    pub(crate) url: String,
    script: Arc<Mutex<Script>>,
}

#[derive(Clone)]
struct Behind {
    node: String,
    client: reqwest::Client,
    script: Arc<Mutex<Script>>,
}

impl Proxy {
    /// A proxy before the node at this address, honest until it is told what to say.
    pub(crate) async fn before(node: &str) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let script: Arc<Mutex<Script>> = Arc::new(Mutex::new(Box::new(|_, _| None)));
        let behind = Behind {
            node: node.to_owned(),
            client: reqwest::Client::new(),
            script: Arc::clone(&script),
        };
        let router = Router::new().route("/", post(answer)).with_state(behind);
        #[expect(clippy::disallowed_methods, reason = "it ends with the test's runtime")]
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { url, script }
    }

    pub(crate) fn says(
        &self,
        script: impl FnMut(&str, &mut Value) -> Option<Value> + Send + 'static,
    ) {
        *self.script.lock().unwrap() = Box::new(script);
    }

    pub(crate) fn is_honest(&self) {
        self.says(|_, _| None);
    }
}

async fn answer(State(behind): State<Behind>, Json(mut request): Json<Value>) -> Json<Value> {
    let method = request["method"].as_str().unwrap().to_owned();
    let scripted = (behind.script.lock().unwrap())(&method, &mut request["params"]);
    if let Some(mut said) = scripted {
        said["jsonrpc"] = json!("2.0");
        said["id"] = request["id"].clone();
        return Json(said);
    }
    let asked = behind.client.post(&behind.node).json(&request).send().await;
    Json(asked.unwrap().json().await.unwrap())
}
