//! What a consumer does with a record: understand it as an event, and apply the event once.

use deadpool_postgres::Transaction;
use jiff::Timestamp;

use super::{Record, store};
use crate::{outbox::AppendError, postgres::sql_state};

/// Characters kept of a dead letter's reason.
const REASON_MAX: usize = 500;

/// A record in CloudEvents 1.0 binary mode, as it stood in Kafka.
#[derive(Clone, Debug)]
pub struct Event {
    /// Topic, without the deployment's prefix.
    pub topic: &'static str,
    /// `ce_source`; with `id`, the event's identity.
    pub source: String,
    /// `ce_id`.
    pub id: String,
    /// `ce_type`.
    pub kind: String,
    /// `ce_time`.
    pub time: Timestamp,
    /// W3C trace context.
    pub traceparent: Option<String>,
    /// The protobuf bytes.
    pub value: Vec<u8>,
}

/// Why a record can never be taken in, for the dead-letter table's reader.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct Poison(pub String);

/// What a consumer does with events.
pub trait Handler: Send + Sync + 'static {
    /// An event, understood.
    type Item: Send + Sync;

    /// Understands one event, purely; `None` when it is of no concern here.
    ///
    /// # Errors
    /// [`Poison`] when it cannot be understood; it becomes a dead letter.
    fn decode(&self, event: &Event) -> Result<Option<Self::Item>, Poison>;

    /// Does what the events ask, in the transaction that also moves the offsets. Each item comes
    /// from an event that no earlier transaction applied, in partition order.
    fn apply(
        &self,
        transaction: &Transaction<'_>,
        items: &[Self::Item],
    ) -> impl Future<Output = anyhow::Result<()>> + Send;
}

/// A consumer's part that is about events alone.
#[derive(Debug)]
pub struct Handling<H> {
    /// The consumer's name, unique in the schema.
    pub name: &'static str,
    /// Topics to take in, without prefix.
    pub topics: &'static [&'static str],
    /// What to do with the events.
    pub handler: H,
}

impl Poison {
    /// The reason as it is kept: not long, and without NUL, which Postgres' text cannot hold.
    pub(super) fn storable(&self) -> Self {
        let kept = self.0.chars().take(REASON_MAX);
        Self(kept.map(visible).collect())
    }
}

impl<H: Handler> Handling<H> {
    pub(super) fn understand(&self, record: &Record) -> Result<Option<(Event, H::Item)>, Poison> {
        let event = event_of(record)?;
        Ok(self.handler.decode(&event)?.map(|item| (event, item)))
    }

    /// Records the identities, and applies the events that are told for the first time.
    pub(super) async fn apply(
        &self,
        transaction: &Transaction<'_>,
        schema: &str,
        understood: Vec<(Event, H::Item)>,
    ) -> anyhow::Result<()> {
        let mut new = store::new_identities(transaction, schema, self.name, &understood).await?;
        // Removing as we go keeps only the first of two equal identities in one chunk.
        let first = |event: &Event| new.remove(&(event.source.clone(), event.id.clone()));
        let items = keep_first(understood, first);
        if !items.is_empty() {
            self.handler.apply(transaction, &items).await?;
        }
        Ok(())
    }
}

/// The character, or the picture of NUL for NUL.
fn visible(character: char) -> char {
    if character == '\0' { '␀' } else { character }
}

fn keep_first<I>(understood: Vec<(Event, I)>, mut first: impl FnMut(&Event) -> bool) -> Vec<I> {
    understood
        .into_iter()
        .filter_map(|(event, item)| first(&event).then_some(item))
        .collect()
}

/// Reads the CloudEvents attributes of a record (Kafka protocol binding, binary mode).
fn event_of(record: &Record) -> Result<Event, Poison> {
    if let Some(flaw) = &record.flaw {
        return Err(flaw.clone());
    }
    let attribute = |name: &str| match record.headers.get(name) {
        Some(text) if !text.is_empty() => Ok(text.clone()),
        _ => Err(Poison(format!(
            "header {name} is missing or not UTF-8 text"
        ))),
    };
    let version = attribute("ce_specversion")?;
    if version != "1.0" {
        return Err(Poison(format!(
            "ce_specversion is {version:?}, not \"1.0\""
        )));
    }
    let time = attribute("ce_time")?;
    Ok(Event {
        topic: record.place.topic,
        source: attribute("ce_source")?,
        id: attribute("ce_id")?,
        kind: attribute("ce_type")?,
        time: time
            .parse()
            .map_err(|error| Poison(format!("ce_time {time:?}: {error}")))?,
        traceparent: record.headers.get("traceparent").cloned(),
        value: record
            .value
            .clone()
            .ok_or_else(|| Poison("the record has no value".into()))?,
    })
}

/// Whether the data itself was refused, by Postgres (SQLSTATE classes 21, 22, 23, or a program
/// limit) or by us, which trying again cannot mend.
pub(super) fn is_data_error(cause: &anyhow::Error) -> bool {
    let state = cause.chain().find_map(|error| sql_state(error));
    state.is_some_and(|state| {
        ["21", "22", "23", "54"]
            .iter()
            .any(|class| state.code().starts_with(class))
    }) || cause.chain().any(|error| {
        let untold = error.downcast_ref::<AppendError>();
        error.is::<Poison>() || matches!(untold, Some(AppendError::TooLarge { .. }))
    })
}
