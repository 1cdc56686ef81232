//! What the gateway shows by itself: the OpenAPI document, and the same as a page to read, made
//! once at start, without scripts and without anything from elsewhere.

use std::fmt::Write as _;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::HeaderValue;
use ring::digest;
use serde_json::{Map, Value};

/// How long clients may keep the document and its page.
pub const CACHE_CONTROL: HeaderValue = HeaderValue::from_static("public, max-age=300");

const METHODS: [&str; 5] = ["get", "post", "put", "patch", "delete"];
const STYLE: &str = "\
body{font:16px/1.5 system-ui,sans-serif;margin:0 auto;max-width:60rem;padding:1rem;color:#1b1f24}\
nav a{display:block}code,pre{font:14px/1.4 ui-monospace,monospace}\
pre{background:#f3f5f7;padding:.75rem;overflow:auto}\
h2{border-top:1px solid #d5dae0;padding-top:1rem}\
table{border-collapse:collapse}td,th{border:1px solid #d5dae0;padding:.25rem .5rem;text-align:left}\
.m{font-weight:700;text-transform:uppercase}";

/// The pages, ready to be sent.
#[derive(Debug)]
pub struct Pages {
    /// `/v1/openapi.json`
    pub openapi: Bytes,
    /// `/docs`
    pub docs: Bytes,
    /// The content security policy of `/docs`: nothing but its own style.
    pub docs_policy: HeaderValue,
}

impl Pages {
    /// Makes the pages of an OpenAPI document.
    ///
    /// # Panics
    /// When it is not JSON.
    #[must_use]
    pub fn new(openapi: &'static str) -> Self {
        let document: Value = serde_json::from_str(openapi).expect("a test reads the document");
        let hash = STANDARD.encode(digest::digest(&digest::SHA256, STYLE.as_bytes()));
        let policy = format!(
            "default-src 'none'; style-src 'sha256-{hash}'; base-uri 'none'; \
             form-action 'none'; frame-ancestors 'none'"
        );
        Self {
            openapi: Bytes::from_static(openapi.as_bytes()),
            docs: render(&document).into(),
            docs_policy: HeaderValue::try_from(policy).expect("visible ASCII"),
        }
    }
}

fn render(document: &Value) -> String {
    let title = text(&document["info"]["title"]);
    let mut html = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>{title}</title>\
         <style>{STYLE}</style></head><body><h1>{title}</h1><p>{}</p>\
         <p><a href=\"/v1/openapi.json\">The OpenAPI document</a></p><nav>",
        text(&document["info"]["description"])
    );
    let operations = operations(document);
    for (path, method, operation) in &operations {
        let summary = text(&operation["summary"]);
        push(
            &mut html,
            format_args!(
                "<a href=\"#{method}{path}\"><code><span class=\"m\">{method}</span> {path}</code> \
             {summary}</a>"
            ),
        );
    }
    html.push_str("</nav>");
    for (path, method, operation) in &operations {
        render_operation(&mut html, path, method, operation);
    }
    html.push_str("<h2 id=\"schemas\">Schemas</h2>");
    for (name, schema) in members(&document["components"]["schemas"]) {
        let (name, schema) = (escape(name), pretty(schema));
        push(
            &mut html,
            format_args!("<h3 id=\"schema-{name}\">{name}</h3><pre>{schema}</pre>"),
        );
    }
    html.push_str("</body></html>");
    html
}

fn render_operation(html: &mut String, path: &str, method: &str, operation: &Value) {
    let (summary, description) = (text(&operation["summary"]), text(&operation["description"]));
    push(
        html,
        format_args!(
            "<h2 id=\"{method}{path}\"><code><span class=\"m\">{method}</span> {path}</code></h2>\
         <p>{summary}</p><p>{description}</p>"
        ),
    );
    let parameters = operation["parameters"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    if !parameters.is_empty() {
        html.push_str("<table><tr><th>Parameter</th><th>In</th><th>Meaning</th></tr>");
        for parameter in parameters {
            let (name, place) = (text(&parameter["name"]), text(&parameter["in"]));
            let meaning = text(&parameter["description"]);
            push(
                html,
                format_args!(
                    "<tr><td><code>{name}</code></td><td>{place}</td><td>{meaning}</td></tr>"
                ),
            );
        }
        html.push_str("</table>");
    }
    render_content(html, "Body", &operation["requestBody"]);
    for (status, response) in members(&operation["responses"]) {
        render_content(html, status, response);
    }
}

fn render_content(html: &mut String, label: &str, value: &Value) {
    if value.is_null() {
        return;
    }
    push(
        html,
        format_args!(
            "<p><b>{}</b> {}",
            escape(label),
            text(&value["description"])
        ),
    );
    for (media, content) in members(&value["content"]) {
        push(html, format_args!(" <code>{}</code>", escape(media)));
        let name = content["schema"]["$ref"]
            .as_str()
            .and_then(|target| target.rsplit('/').next());
        if let Some(name) = name.map(escape) {
            push(html, format_args!(" <a href=\"#schema-{name}\">{name}</a>"));
        }
    }
    html.push_str("</p>");
}

fn operations(document: &Value) -> Vec<(String, &'static str, &Value)> {
    let paths = members(&document["paths"]);
    let each = paths.flat_map(|(path, methods)| {
        METHODS.into_iter().filter_map(move |method| {
            methods
                .get(method)
                .map(|operation| (escape(path), method, operation))
        })
    });
    each.collect()
}

fn members(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flat_map(Map::iter)
}

/// The text, escaped; what stands between backticks is shown as code.
fn text(value: &Value) -> String {
    let escaped = escape(value.as_str().unwrap_or_default());
    if !escaped.matches('`').count().is_multiple_of(2) {
        return escaped;
    }
    let parts = escaped.split('`').enumerate();
    let marked = parts.map(|(index, part)| match index % 2 {
        0 => part.to_owned(),
        _ => format!("<code>{part}</code>"),
    });
    marked.collect()
}

fn pretty(value: &Value) -> String {
    escape(&serde_json::to_string_pretty(value).expect("a JSON value has a JSON form"))
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

fn push(html: &mut String, arguments: std::fmt::Arguments<'_>) {
    html.write_fmt(arguments)
        .expect("a string takes everything");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::ROUTES;

    #[test]
    fn the_page_shows_every_operation_and_loads_nothing() {
        let pages = Pages::new(contracts::OPENAPI_JSON);
        let html = std::str::from_utf8(&pages.docs).unwrap();
        assert!(html.contains("/v1/jobs/{job_id}/proof") && html.contains("SubmitRequest"));
        for foreign in ["<script", "src=", "@import", "url("] {
            assert!(!html.contains(foreign), "{foreign}");
        }
    }

    #[test]
    fn every_documented_operation_has_a_route() {
        let document: Value = serde_json::from_str(contracts::OPENAPI_JSON).unwrap();
        for (path, method, _) in operations(&document) {
            let found = ROUTES.iter().any(|route| {
                route.template == path && route.method.as_str().eq_ignore_ascii_case(method)
            });
            assert!(found, "{method} {path}");
        }
    }

    #[test]
    fn text_of_the_document_cannot_become_markup() {
        assert_eq!(escape("<b a=\"1\">&"), "&lt;b a=&quot;1&quot;&gt;&amp;");
        let marked = text(&Value::from("a `<b>` and `c`"));
        assert_eq!(marked, "a <code>&lt;b&gt;</code> and <code>c</code>");
        assert_eq!(text(&Value::from("one ` only")), "one ` only");
    }
}
