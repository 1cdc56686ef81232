//! `relayer check`: everything `run` needs, without running; and `relayer migrate`.

use std::io::Write as _;

use ops::{kafka, postgres};

use crate::{
    config::{Failure, MigrateOptions, RunOptions},
    run,
    store::{self, SCHEMA},
};

/// Says on standard output what was found in order.
pub async fn check(options: &RunOptions) -> Result<(), Failure> {
    let setup = run::prepare(options).await?;
    let producer = kafka::producer(&options.kafka).map_err(Failure::Config)?;
    kafka::ping(&producer).await.map_err(Failure::Unavailable)?;
    let lines = format!(
        "configuration, keys, schema and Kafka are in order\n\
         chain {}, registry {}, gas key {}\n",
        setup.key.chain_id,
        setup.key.registry,
        setup.keys.gas.address()
    );
    std::io::stdout()
        .write_all(lines.as_bytes())
        .map_err(|cause| Failure::Other(cause.into()))
}

/// Creates or updates the schema.
pub async fn migrate(options: &MigrateOptions) -> Result<(), Failure> {
    let pool = postgres::connect(&options.database, "relayer").map_err(Failure::Config)?;
    postgres::ping(&pool).await.map_err(Failure::Unavailable)?;
    postgres::migrate(&pool, SCHEMA, &store::migrations()).await?;
    Ok(())
}
