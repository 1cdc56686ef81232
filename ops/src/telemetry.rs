//! Logs, metrics and traces: set up once in `main`, and the W3C trace context that travels with
//! requests, outbox rows and Kafka records.

use std::collections::HashMap;

use anyhow::Context as _;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use opentelemetry::{
    Context, KeyValue,
    propagation::TextMapPropagator,
    trace::{Span as _, SpanBuilder, SpanKind, TraceContextExt, Tracer as _, TracerProvider},
};
use opentelemetry_otlp::WithExportConfig;
use opentelemetry_sdk::{
    propagation::TraceContextPropagator,
    trace::{SdkTracer, SdkTracerProvider},
};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::{EnvFilter, Layer, layer::SubscriberExt, util::SubscriberInitExt};

use crate::config::{BadConfig, LogFormat, LogOptions};

/// Latency bucket bounds of every `*_seconds` histogram, in seconds.
const SECONDS_BUCKETS: [f64; 14] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

/// What is logged when `RUST_LOG` does not say: librdkafka repeats an outage forty times a second,
/// and whoever uses Kafka says once what it means.
const DEFAULT_FILTER: &str = "info,librdkafka=off,rdkafka=off";

/// What [`init`] set up; dropping it flushes the traces.
#[derive(Debug)]
pub struct Telemetry {
    /// Renders the process's metrics in the Prometheus text format.
    pub metrics: PrometheusHandle,
    /// Makes spans by hand, where somebody collects them.
    pub spans: Option<Spans>,
    traces: SdkTracerProvider,
}

/// Makes spans by hand, for a path on which `tracing`'s are too dear.
#[derive(Clone, Debug)]
pub struct Spans(SdkTracer);

/// One span, from its start to [`OpenSpan::end`].
#[derive(Debug)]
pub struct OpenSpan(opentelemetry_sdk::trace::Span);

/// Sets up logs on standard error, the metrics recorder and the tracer of this process.
///
/// # Errors
/// When the OTLP endpoint is not a URL, or telemetry was set up before.
pub fn init(service: &'static str, options: &LogOptions) -> Result<Telemetry, BadConfig> {
    set_up(service, options).map_err(BadConfig)
}

fn set_up(service: &'static str, options: &LogOptions) -> anyhow::Result<Telemetry> {
    let metrics = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS_BUCKETS)?
        .install_recorder()
        .context("install the metrics recorder")?;
    let traces = tracer(service, options)?;
    let filter =
        EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(DEFAULT_FILTER));
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines = match options.log_format {
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
        LogFormat::Text => lines.with_target(false).boxed(),
    };
    tracing_subscriber::registry()
        .with(tracing_opentelemetry::layer().with_tracer(traces.tracer(service)))
        .with(lines)
        .with(filter)
        .try_init()
        .context("set up logging")?;
    let collected = options.otlp_endpoint.is_some();
    let spans = collected.then(|| Spans(traces.tracer(service)));
    Ok(Telemetry {
        metrics,
        spans,
        traces,
    })
}

impl Spans {
    /// A server's span in the trace that `traceparent` names, if it is sampled.
    #[must_use]
    pub fn start(&self, name: &'static str, traceparent: &str) -> Option<OpenSpan> {
        let builder = SpanBuilder::from_name(name).with_kind(SpanKind::Server);
        let span = self.0.build_with_context(builder, &remote(traceparent));
        span.is_recording().then_some(OpenSpan(span))
    }
}

impl OpenSpan {
    /// What whoever is asked next is told.
    #[must_use]
    pub fn traceparent(&self) -> String {
        let context = self.0.span_context();
        let (trace, span) = (context.trace_id(), context.span_id());
        format!("00-{trace}-{span}-{:02x}", context.trace_flags())
    }

    /// Ends it, with what is to be seen of it.
    pub fn end(mut self, attributes: impl IntoIterator<Item = (&'static str, String)>) {
        for (key, value) in attributes {
            self.0.set_attribute(KeyValue::new(key, value));
        }
        self.0.end();
    }
}

/// The `traceparent` of the current span (W3C Trace Context), to send along.
#[must_use]
pub fn traceparent() -> Option<String> {
    let context = Span::current().context();
    if !context.span().span_context().is_valid() {
        return None;
    }
    let mut carrier = HashMap::new();
    TraceContextPropagator::new().inject_context(&context, &mut carrier);
    carrier.remove("traceparent")
}

/// Makes `span` a child of the trace that `traceparent` names; an unreadable one starts afresh.
pub fn continue_trace(span: &Span, traceparent: Option<&str>) {
    let Some(text) = traceparent else { return };
    let context = remote(text);
    if context.span().span_context().is_valid() {
        // Fails only for a span that no layer records, which then has no trace to continue.
        span.set_parent(context).ok();
    }
}

fn remote(traceparent: &str) -> Context {
    let carrier = HashMap::from([("traceparent".to_owned(), traceparent.to_owned())]);
    TraceContextPropagator::new().extract(&carrier)
}

fn tracer(service: &'static str, options: &LogOptions) -> anyhow::Result<SdkTracerProvider> {
    let resource = opentelemetry_sdk::Resource::builder()
        .with_service_name(service)
        .build();
    let builder = SdkTracerProvider::builder().with_resource(resource);
    let Some(endpoint) = &options.otlp_endpoint else {
        return Ok(builder.build());
    };
    // The exporter's HTTP client needs a TLS provider even for plain http.
    rustls::crypto::ring::default_provider()
        .install_default()
        .ok();
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_http()
        .with_endpoint(format!("{}/v1/traces", endpoint.trim_end_matches('/')))
        .build()
        .context("set up the OTLP exporter")?;
    Ok(builder.with_batch_exporter(exporter).build())
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        // The last spans are worth a try, not a failed exit.
        self.traces.shutdown().ok();
    }
}
