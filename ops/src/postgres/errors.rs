//! What an error of Postgres means: to be tried again, an outage that passes, or something to
//! tell; and how it is told without anybody's data.

use std::{error::Error, io};

use deadpool_postgres::PoolError;
use tokio_postgres::error::{DbError, SqlState};

/// Whether an error chain ends in a deadlock or serialization failure.
#[must_use]
pub fn is_conflict(error: &(dyn Error + 'static)) -> bool {
    sql_state(error).is_some_and(|state| {
        *state == SqlState::T_R_SERIALIZATION_FAILURE || *state == SqlState::T_R_DEADLOCK_DETECTED
    })
}

/// Whether an error chain says that Postgres is not there now, as against refusing what was asked:
/// no connection to be had, one that broke, a server that stops, starts or is full. What failed may
/// be asked again soon, which an HTTP API tells by a 503 with `Retry-After`.
#[must_use]
pub fn is_outage(error: &(dyn Error + 'static)) -> bool {
    chain(error).any(|error| {
        if let Some(refused) = error.downcast_ref::<DbError>() {
            return is_outage_state(refused.code());
        }
        let closed = error.downcast_ref::<tokio_postgres::Error>();
        error.is::<PoolError>()
            || closed.is_some_and(tokio_postgres::Error::is_closed)
            || error.downcast_ref::<io::Error>().is_some_and(is_broken)
    })
}

/// Classes 08 (connection exception) and 53 (insufficient resources), and a server that is going
/// down or coming up.
fn is_outage_state(state: &SqlState) -> bool {
    ["08", "53", "57P"]
        .iter()
        .any(|class| state.code().starts_with(class))
}

/// The driver also gives these two kinds to bytes that it cannot read or write.
fn is_broken(error: &io::Error) -> bool {
    !matches!(
        error.kind(),
        io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData
    )
}

/// The causes of an error, for a log or a dead letter's reason. Of what Postgres refused it tells
/// the message and the SQLSTATE, never the DETAIL, which repeats whole rows: payloads, salts, keys.
#[must_use]
pub fn explain(cause: &anyhow::Error) -> String {
    let told = cause
        .chain()
        .map(|error| match error.downcast_ref::<DbError>() {
            Some(refused) => format!("{} ({})", refused.message(), refused.code().code()),
            None => error.to_string(),
        });
    told.collect::<Vec<_>>().join(": ")
}

/// The SQLSTATE in an error chain, if Postgres itself answered.
#[must_use]
pub fn sql_state<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a SqlState> {
    chain(error)
        .find_map(|error| error.downcast_ref::<tokio_postgres::Error>())
        .and_then(tokio_postgres::Error::code)
}

fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}
