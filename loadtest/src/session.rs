//! A run against a live system: an endpoint of our own registered, watchers on every side, the
//! load, and the wait until everything has arrived at its last stage.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use alloy::primitives::Address;
use anyhow::Context as _;
use clap::Args;
use contracts::{
    api::{
        jobs::JobEventType,
        webhooks::{CreateEndpoint, DEFAULT_EVENTS, EndpointCreated, UpdateEndpoint},
    },
    id::{EndpointId, JobId},
};
use jiff::SignedDuration;
use reqwest::Method;
use secrecy::SecretString;
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep},
};
use url::Url;

use crate::{
    chain::Chain,
    client::Api,
    clock, crowd,
    exit::{BadUsage, Unreachable},
    faults::{FaultPlan, FaultReport, Started},
    load::{self, Load, LoadReport},
    log::{Actor, CLIENT_LOG, ClientLog, Route, Submission},
    poll,
    receiver::{RECEIPTS, Receiver},
    report::Progress,
    request::{Call, Credential},
    stages::Stage,
    watch::Tracker,
};

/// How often the wait for the last stage looks.
const DRAIN_EVERY: Duration = Duration::from_millis(200);
/// How long the target may take to answer at all.
const REACH_TIMEOUT: Duration = Duration::from_secs(10);
/// How far the target's clock may be from ours.
const CLOCKS_APART_MAX: SignedDuration = SignedDuration::from_hours(1);
/// Where endpoints are registered.
const ENDPOINTS: &str = "/v1/webhooks/endpoints";

/// Where the system is.
#[derive(Args, Clone, Debug)]
pub(crate) struct TargetOptions {
    /// The gateway.
    #[arg(long, env = "GATEWAY_URL", value_name = "URL")]
    gateway: Url,
    /// A file that holds the tenant's API key, with the scopes jobs:submit, jobs:read,
    /// webhooks:read, webhooks:write and billing:read.
    #[arg(long, env = "API_KEY_FILE", value_name = "FILE")]
    api_key_file: PathBuf,
    /// The chain's JSON-RPC endpoint.
    #[arg(long, env = "RPC_URL", value_name = "URL")]
    rpc_url: Url,
    /// The address of `JobsRegistry`.
    #[arg(long, env = "REGISTRY_ADDRESS", value_name = "ADDRESS")]
    registry: Address,
    /// Where client.jsonl (every request) and receipts.jsonl (every webhook) are.
    #[arg(long, value_name = "DIR")]
    work_dir: PathBuf,
}

/// The system, reached.
pub(crate) struct Target {
    /// The gateway.
    pub(crate) api: Api,
    /// The tenant's credential.
    pub(crate) credential: Credential,
    /// The chain.
    pub(crate) chain: Chain,
    /// Where the logs are.
    pub(crate) work_dir: PathBuf,
}

/// A target being watched.
pub(crate) struct Session<'a> {
    target: &'a Target,
    /// Where webhooks arrive.
    pub(crate) receiver: Receiver,
    endpoint: EndpointId,
    /// What is known of each job.
    pub(crate) tracker: Arc<Tracker>,
    watchers: JoinSet<()>,
}

/// The jobs that did not arrive at their last stage in time, by the stage they miss.
pub(crate) type Stuck = BTreeMap<Stage, Vec<JobId>>;

impl TargetOptions {
    /// Complains if the work folder holds no logs of a run.
    pub(crate) fn require_logs(&self) -> Result<(), BadUsage> {
        for name in [CLIENT_LOG, RECEIPTS] {
            let path = self.work_dir.join(name);
            if !path.is_file() {
                return Err(BadUsage(format!(
                    "there is no {}: a run makes it",
                    path.display()
                )));
            }
        }
        Ok(())
    }

    /// Reaches the system, or says what cannot be reached.
    pub(crate) async fn connect(&self) -> anyhow::Result<Target> {
        let work_dir = self.work_dir.clone();
        std::fs::create_dir_all(&work_dir)
            .map_err(|error| BadUsage(format!("cannot make {}: {error}", work_dir.display())))?;
        let credential = Credential::from_file(&self.api_key_file, Actor::Tenant)?;
        let api = Api::new(self.gateway.clone(), Arc::new(ClientLog::open(&work_dir)?))?;
        let deadline = Instant::now() + REACH_TIMEOUT;
        let health = api
            .fetch(Route::Health, "/v1/health", None, deadline)
            .await?;
        if health.status != 200 {
            let message = format!("GET /v1/health answered {}", health.status);
            return Err(Unreachable(message).into());
        }
        let chain = Chain::connect(&self.rpc_url, self.registry).await?;
        Ok(Target {
            api,
            credential,
            chain,
            work_dir,
        })
    }
}

impl<'a> Session<'a> {
    /// Registers an endpoint and begins to watch.
    pub(crate) async fn open(target: &'a Target, refuse_every: usize) -> anyhow::Result<Self> {
        let tracker = Arc::new(Tracker::default());
        let (receiver, endpoint) = open_receiver(target, &tracker, refuse_every).await?;
        let mut watchers = JoinSet::new();
        let from = target.chain.head().await?;
        watchers.spawn(poll::chain(
            target.chain.clone(),
            from,
            Arc::clone(&tracker),
        ));
        let (api, credential) = (target.api.clone(), target.credential.clone());
        watchers.spawn(poll::list(
            api.clone(),
            credential.clone(),
            Arc::clone(&tracker),
        ));
        let since = clock::now() - CLOCKS_APART_MAX;
        watchers.spawn(poll::usage(api, credential, since, Arc::clone(&tracker)));
        Ok(Self {
            target,
            receiver,
            endpoint,
            tracker,
            watchers,
        })
    }

    /// Submits, and makes the faults meanwhile.
    pub(crate) async fn load(
        &self,
        load: Load,
        submissions: impl Iterator<Item = Submission>,
        faults: FaultPlan,
        progress: &Progress,
    ) -> anyhow::Result<(LoadReport, Vec<FaultReport>)> {
        let (started, receiver) = watch::channel(Started::default());
        let client = (&self.target.api, &self.target.credential);
        let crowd = async |last| crowd::press(client.0, client.1, &last).await;
        tokio::try_join!(
            load::submit_all(load, submissions, client, &self.tracker, started, progress),
            faults.run(receiver, crowd, progress),
        )
    }

    /// Waits until every accepted job is at its last stage; after `patience`, says which are not.
    pub(crate) async fn drain(&self, patience: Duration) -> Result<(), Stuck> {
        let deadline = Instant::now() + patience;
        let progress = Progress::new("arrived", self.tracker.reached().accepted);
        loop {
            let reached = self.tracker.reached();
            let told: Vec<_> = reached
                .stages
                .iter()
                .skip(1)
                .map(|(stage, (have, want))| format!("{stage} {have}/{want}"))
                .collect();
            progress.set(reached.done, &told.join(", "));
            if reached.done == reached.accepted {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(self.tracker.stuck());
            }
            sleep(DRAIN_EVERY).await;
        }
    }

    /// Has the endpoint disabled, so that nobody goes on sending to where nobody listens.
    pub(crate) async fn close(self) -> anyhow::Result<()> {
        let body = serde_json::to_vec(&UpdateEndpoint {
            enabled: Some(false),
            ..UpdateEndpoint::default()
        })?;
        let path = format!("{ENDPOINTS}/{}", self.endpoint);
        let credential = Some(&self.target.credential);
        let call = Call::post(Route::UpdateEndpoint, path, credential, body).method(Method::PATCH);
        let answer = self
            .target
            .api
            .call(call)
            .await
            .context("disabling the endpoint")?;
        anyhow::ensure!(
            answer.status == 200,
            "disabling the endpoint: status {}",
            answer.status
        );
        Ok(())
    }

    /// Ends the watching; webhooks are still received.
    pub(crate) async fn stop_watching(&mut self) {
        self.watchers.shutdown().await;
    }
}

async fn open_receiver(
    target: &Target,
    tracker: &Arc<Tracker>,
    refuse_every: usize,
) -> anyhow::Result<(Receiver, EndpointId)> {
    let receiver = Receiver::start(&target.work_dir, Arc::clone(tracker), refuse_every).await?;
    let events: Vec<JobEventType> = DEFAULT_EVENTS.to_vec();
    let request = CreateEndpoint {
        url: receiver.url(),
        events: Some(events.clone()),
        description: Some("loadtest".into()),
    };
    let body = serde_json::to_vec(&request)?;
    let call = Call::post(
        Route::CreateEndpoint,
        ENDPOINTS,
        Some(&target.credential),
        body,
    )
    .header(
        "idempotency-key",
        &uuid::Uuid::new_v4().simple().to_string(),
    )
    .subscribing(events);
    let answer = target
        .api
        .call(call)
        .await
        .context("registering the webhook endpoint")?;
    anyhow::ensure!(
        answer.status == 201,
        "registering the webhook endpoint: status {}, {}",
        answer.status,
        answer
            .problem()
            .and_then(|problem| problem.detail)
            .unwrap_or_default(),
    );
    let created: EndpointCreated = answer.json()?;
    receiver.expect_secret(&SecretString::from(created.secret))?;
    Ok((receiver, created.endpoint.endpoint_id))
}

/// Says which jobs are stuck where.
pub(crate) fn describe_stuck(stuck: &Stuck, work_dir: &Path) -> String {
    const SHOWN: usize = 10;
    let mut lines = vec!["not every job arrived at its last stage in time:".to_owned()];
    for (stage, jobs) in stuck {
        let mut shown: Vec<_> = jobs.iter().take(SHOWN).map(ToString::to_string).collect();
        if jobs.len() > SHOWN {
            shown.push(format!("and {} more", jobs.len() - SHOWN));
        }
        lines.push(format!(
            "  not {stage}: {} ({})",
            jobs.len(),
            shown.join(", ")
        ));
    }
    lines.push(format!(
        "  requests and webhooks are in {}",
        work_dir.display()
    ));
    lines.join("\n")
}
