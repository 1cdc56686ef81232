//! `relayer run`: builds the components in order and runs them until the process is told to stop.

use std::{process::ExitCode, sync::Arc};

use anyhow::{Context as _, anyhow, bail};
use contracts::event::RELAYER_CONFIRMED;
use ops::{
    admin::{Flag, Readiness},
    clock::Clock,
    config::BadConfig,
    inbox::Consumer,
    outbox::Publisher,
    postgres::{self, Pool},
    process::Process,
    retention,
};
use tracing::info;

use crate::{
    chain::Chain,
    config::RunOptions,
    intake,
    lane::{self, Keys, Setup},
    signer::{self, Attesters},
    store::{self, LaneKey, SCHEMA},
};

/// Runs intake, lane and publisher.
///
/// # Errors
/// When something is not as it must be from the start.
pub async fn run(options: RunOptions, process: Process) -> anyhow::Result<ExitCode> {
    let setup = prepare(&options).await?;
    ops::kafka::ensure_topics(&options.kafka, &[RELAYER_CONFIRMED]).await?;
    let intake_ready = Flag::default();
    let readiness = Readiness::default()
        .with_database(setup.pool.clone())
        .with_flag("intake", intake_ready.clone())
        .with_flag("chain", setup.ready.clone());
    let publisher = Publisher::new(setup.pool.clone(), SCHEMA, options.kafka.clone());
    let consumer = Consumer {
        pool: setup.pool.clone(),
        schema: SCHEMA,
        kafka: options.kafka,
        handling: intake::handling(setup.clock.clone()),
        ready: intake_ready,
    };
    info!(
        chain.id = setup.key.chain_id,
        registry = %setup.key.registry,
        gas.address = %setup.keys.gas.address(),
        "relayer is up"
    );
    let lifecycle = &process.lifecycle;
    lifecycle.spawn("intake", consumer.run(lifecycle.stopping()));
    lifecycle.spawn("publisher", publisher.run(lifecycle.stopping()));
    let retention = retention::run(setup.pool.clone(), SCHEMA, lifecycle.stopping());
    lifecycle.spawn("retention", retention);
    lifecycle.spawn("lane", lane::run(setup, lifecycle.stopping()));
    process.run_until_stopped(&options.process, readiness).await
}

/// Checks everything that can be checked before the first batch, and refuses what does not fit:
/// keys, schema, chain id, contract, attesters' roles, and a registry ahead of the database.
///
/// # Errors
/// Says what does not fit.
pub async fn prepare(options: &RunOptions) -> anyhow::Result<Setup> {
    let keys = Arc::new(Keys {
        attesters: Attesters::from_file(&options.keys.attester_keys_file).map_err(BadConfig)?,
        gas: signer::gas_key(&options.keys.gas_key_file).map_err(BadConfig)?,
    });
    if keys.attesters.addresses().contains(&keys.gas.address()) {
        bail!(BadConfig(anyhow!("the gas key is also an attester's")));
    }
    let pool = postgres::open(&options.database, SCHEMA, &store::migrations()).await?;
    let registry = options.registry.registry_address;
    let (chain, chain_id) = options.chain.connect(registry).await?;
    let key = LaneKey { chain_id, registry };
    inspect(&chain, &keys, key, &pool).await?;
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

async fn inspect(chain: &Chain, keys: &Keys, key: LaneKey, pool: &Pool) -> anyhow::Result<()> {
    let LaneKey { chain_id, registry } = key;
    if !chain.has_code().await? {
        bail!(BadConfig(anyhow!(
            "there is no contract at {registry} on chain {chain_id}: run `relayer deploy`, and set \
             REGISTRY_ADDRESS to what it prints"
        )));
    }
    let cursor = chain.cursor().await.map_err(BadConfig)?;
    let allowed = chain.confirmers(&keys.attesters.addresses()).await?;
    if allowed.len() < usize::from(cursor.terms.threshold) {
        bail!(BadConfig(anyhow!(
            "the registry wants {} attesters, ATTESTER_KEYS_FILE holds {} that it allows",
            cursor.terms.threshold,
            allowed.len()
        )));
    }
    let client = pool.get().await.context("connect to Postgres")?;
    match store::lane(&client, key).await? {
        Some(row) => lane::require_not_behind(&row, cursor),
        None => Ok(()),
    }
}
