//! `relayer run`: builds the components in order and runs them until the process is told to stop.

use std::{process::ExitCode, sync::Arc};

use anyhow::anyhow;
use contracts::event::RELAYER_CONFIRMED;
use ops::{
    admin::{self, Flag, Readiness},
    clock::Clock,
    inbox::Consumer,
    lifecycle::Lifecycle,
    outbox::Publisher,
    postgres::{self, Pool},
    telemetry::Telemetry,
};
use tracing::info;

use crate::{
    chain::Chain,
    config::{Failure, RunOptions},
    intake::{CONSUMER, Intake, TOPICS},
    lane::{self, Keys, Setup},
    signer::{self, Attesters},
    store::{self, LaneKey, SCHEMA},
};

/// Runs intake, lane and publisher.
pub async fn run(options: RunOptions, telemetry: &Telemetry) -> Result<ExitCode, Failure> {
    let setup = prepare(&options).await?;
    ops::kafka::ensure_topics(&options.kafka, &[RELAYER_CONFIRMED])
        .await
        .map_err(Failure::Unavailable)?;
    let lifecycle = Lifecycle::new(options.process.drain());
    let stop = lifecycle.stopping();
    let intake_ready = Flag::default();
    let readiness = Readiness::default()
        .with_database(setup.pool.clone())
        .with_flag("intake", intake_ready.clone())
        .with_flag("chain", setup.ready.clone());
    let metrics = telemetry.metrics.clone();
    let (address, serve) = admin::bind(
        options.process.admin_listen,
        readiness,
        metrics,
        stop.clone(),
    )
    .await?;
    let publisher = Publisher::new(setup.pool.clone(), SCHEMA, options.kafka.clone());
    let intake = Consumer {
        pool: setup.pool.clone(),
        schema: SCHEMA,
        name: CONSUMER,
        kafka: options.kafka,
        topics: TOPICS,
        handler: Intake {
            clock: setup.clock.clone(),
        },
        ready: intake_ready,
    };
    info!(
        admin.address = %address,
        chain.id = setup.key.chain_id,
        registry = %setup.key.registry,
        gas.address = %setup.keys.gas.address(),
        "relayer is up"
    );
    lifecycle.spawn("admin", serve);
    lifecycle.spawn("intake", intake.run(stop.clone()));
    lifecycle.spawn("publisher", publisher.run(stop.clone()));
    lifecycle.spawn("lane", lane::run(setup, stop));
    Ok(lifecycle.run_until_stopped().await)
}

/// Checks everything that can be checked before the first batch, and refuses what does not fit:
/// keys, schema, chain id, contract, attesters' roles, and a registry ahead of the database.
pub async fn prepare(options: &RunOptions) -> Result<Setup, Failure> {
    let attesters =
        Attesters::from_file(&options.keys.attester_keys_file).map_err(Failure::Config)?;
    let gas = signer::gas_key(&options.keys.gas_key_file).map_err(Failure::Config)?;
    if attesters.addresses().contains(&gas.address()) {
        return Err(Failure::Config(anyhow!(
            "the gas key is also an attester's"
        )));
    }
    let keys = Arc::new(Keys { attesters, gas });
    let pool = postgres::connect(&options.database, "relayer").map_err(Failure::Config)?;
    postgres::ping(&pool).await.map_err(Failure::Unavailable)?;
    postgres::require_schema(&pool, SCHEMA, &store::migrations()).await?;
    let registry = options.registry.registry_address;
    let chain = options.chain.connect(registry).map_err(Failure::Config)?;
    let key = inspect(&chain, &keys, options.chain.chain_id, &pool).await?;
    Ok(Setup {
        pool,
        chain: Arc::new(chain),
        key,
        keys,
        options: options.lane.clone(),
        first_block: options.registry.registry_block,
        clock: Clock::system(),
        ready: Flag::default(),
    })
}

async fn inspect(
    chain: &Chain,
    keys: &Keys,
    wanted: Option<u64>,
    pool: &Pool,
) -> Result<LaneKey, Failure> {
    let registry = chain.registry();
    let chain_id = chain.chain_id().await.map_err(Failure::Unavailable)?;
    if let Some(wanted) = wanted.filter(|wanted| *wanted != chain_id) {
        let cause = anyhow!("the endpoints are of chain {chain_id}, CHAIN_ID says {wanted}");
        return Err(Failure::Config(cause));
    }
    if !chain.has_code().await.map_err(Failure::Unavailable)? {
        return Err(Failure::Config(anyhow!(
            "there is no contract at {registry} on chain {chain_id}: run `relayer deploy`, and set \
             REGISTRY_ADDRESS to what it prints"
        )));
    }
    let cursor = chain.cursor().await.map_err(Failure::Config)?;
    let allowed = chain.confirmers(&keys.attesters.addresses()).await?;
    if allowed.len() < usize::from(cursor.threshold) {
        return Err(Failure::Config(anyhow!(
            "the registry wants {} attesters, ATTESTER_KEYS_FILE holds {} that it allows",
            cursor.threshold,
            allowed.len()
        )));
    }
    let key = LaneKey { chain_id, registry };
    let client = pool
        .get()
        .await
        .map_err(|cause| Failure::Unavailable(cause.into()))?;
    let row = store::lane(&client, key)
        .await
        .map_err(|cause| Failure::Other(cause.into()))?;
    if let Some(row) = row {
        lane::require_not_behind(&row, cursor)?;
    }
    Ok(key)
}
