//! Shipping: spooled records to Kafka in order, the checkpoint after their acknowledgement.
//!
//! A crash between the two ships some again, with the same identities.

use std::{fs, io, sync::Arc, time::Duration};

use anyhow::{Context as _, ensure};
use contracts::event::USAGE_RECORDED;
use jiff::Timestamp;
use ops::{config::KafkaOptions, kafka};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::spool::{
    Spool,
    batch::{Batches, Sent},
    folder::{Folder, Place},
    segment::{self, RECORD_MAX_BYTES, Tail},
};

/// Bytes read and records sent at a time.
const CHUNK_BYTES: u64 = 4 * RECORD_MAX_BYTES as u64;
/// Pause between looks at an empty spool.
const IDLE_POLL: Duration = Duration::from_millis(50);
/// Pause after a failure.
const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// How often spools of dead processes are looked for.
const ADOPT_EVERY: Duration = Duration::from_secs(5);
/// How long a stopping process goes on shipping; what is left, the next one adopts.
const LAST_SHIPMENT: Duration = Duration::from_secs(3);

/// Ships the spool of this process, and of those that died.
#[derive(Debug)]
pub struct Shipper {
    spool: Arc<Spool>,
    kafka: KafkaOptions,
    /// How far our own is shipped. The checkpoint only tells it to whoever comes after us.
    own: Place,
    adopted: Vec<Adopted>,
    /// Adopted ones that could not be shipped; they are tried again after the next look.
    set_aside: Vec<Adopted>,
}

/// A dead process's folder, and how far it is shipped.
#[derive(Debug)]
struct Adopted {
    folder: Folder,
    at: Place,
}

/// How much of a folder was shipped in one go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    /// Some; there may be more.
    Some,
    /// Nothing is left to ship.
    Done,
}

impl Shipper {
    /// Ships `spool` to Kafka.
    #[must_use]
    pub fn new(spool: Arc<Spool>, kafka: KafkaOptions) -> Self {
        Self {
            spool,
            kafka,
            own: Place::start_of(1),
            adopted: Vec::new(),
            set_aside: Vec::new(),
        }
    }

    /// Ships until the process stops, and then for a little longer.
    ///
    /// # Errors
    /// Never by itself: outages are waited out.
    pub async fn run(mut self, stop: CancellationToken) -> anyhow::Result<()> {
        let give_up = async {
            stop.cancelled().await;
            tokio::time::sleep(LAST_SHIPMENT).await;
        };
        tokio::select! {
            () = give_up => info!("what is left in the spool the next process ships"),
            () = self.ship_all(&stop) => {}
        }
        Ok(())
    }

    async fn ship_all(&mut self, stop: &CancellationToken) {
        while let Err(cause) = self.ship_on(stop).await {
            let error = format!("{cause:#}");
            warn!(error, "usage records wait on disk");
            self.spool.set_oldest(self.oldest());
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    /// Ships with one producer until it fails; returns when the process stops and nothing is left.
    async fn ship_on(&mut self, stop: &CancellationToken) -> anyhow::Result<()> {
        // First of all: what they left counts even where it cannot be shipped.
        self.adopt().context("look for spools of dead processes")?;
        self.spool.set_oldest(self.oldest());
        let mut looked = Instant::now();
        kafka::ensure_topics(&self.kafka, &[USAGE_RECORDED]).await?;
        let producer = Batches::new(&self.kafka, self.kafka.topic(USAGE_RECORDED))?;
        loop {
            if looked.elapsed() >= ADOPT_EVERY {
                self.adopt().context("look for spools of dead processes")?;
                looked = Instant::now();
            }
            self.spool.set_oldest(self.oldest());
            // Asked before shipping: what was written until then is shipped when it is Done.
            let last = stop.is_cancelled();
            let own = self.ship_own(&producer).await?;
            let adopted = self.ship_adopted(&producer).await;
            if own == Progress::Done && adopted == Progress::Done {
                if last {
                    return Ok(());
                }
                tokio::time::sleep(IDLE_POLL).await;
            }
        }
    }

    fn adopt(&mut self) -> io::Result<()> {
        self.adopted.append(&mut self.set_aside);
        let adopted = self.spool.adopt()?.into_iter();
        self.adopted
            .extend(adopted.map(|(folder, at)| Adopted { folder, at }));
        Ok(())
    }

    /// When the oldest record was written that is not shipped.
    fn oldest(&self) -> Option<Timestamp> {
        let own = self.spool.own();
        let own = own.filter(|_| self.own < self.spool.end());
        let adopted = self.adopted.iter().chain(&self.set_aside);
        let all = adopted.map(|adopted| (&adopted.folder, adopted.at));
        all.chain(own.map(|own| (own, self.own)))
            .filter_map(|(folder, at)| folder.oldest_from(at))
            .min()
    }

    /// Ships one chunk of our own folder.
    async fn ship_own(&mut self, producer: &Batches) -> anyhow::Result<Progress> {
        let Some(folder) = self.spool.own() else {
            return Ok(Progress::Done);
        };
        let end = Some(self.spool.end());
        let shipped = ship(&self.spool, producer, folder, &mut self.own, end).await?;
        if shipped == Progress::Done && self.spool.is_stuck() {
            let (spool, at) = (Arc::clone(&self.spool), self.own);
            let anew = tokio::task::spawn_blocking(move || spool.begin_anew(at)).await?;
            if anew.context("overwrite a shipped segment")? {
                self.own = Place::start_of(at.segment);
            }
        }
        Ok(shipped)
    }

    /// Ships one chunk of an adopted folder. One that fails is set aside, so that nothing else
    /// waits for it.
    async fn ship_adopted(&mut self, producer: &Batches) -> Progress {
        let Some(mut adopted) = self.adopted.pop() else {
            return Progress::Done;
        };
        let Adopted { folder, at } = &mut adopted;
        let shipped = match ship(&self.spool, producer, folder, at, None).await {
            Ok(Progress::Done) => fs::remove_dir_all(folder.path())
                .map(|()| Progress::Done)
                .map_err(Into::into),
            shipped => shipped,
        };
        let path = folder.path().display().to_string();
        match shipped {
            Ok(Progress::Done) => info!(spool.path = path, "the adopted spool is shipped"),
            Ok(Progress::Some) => self.adopted.push(adopted),
            Err(cause) => {
                let error = format!("{cause:#}");
                warn!(
                    spool.path = path,
                    error, "an adopted spool cannot be shipped"
                );
                self.set_aside.push(adopted);
            }
        }
        Progress::Some
    }
}

/// Ships one chunk of a folder and moves `at` past it, before anything else can fail: what is in
/// Kafka is counted once. `end` is where its writer stands; without one there is none, and an
/// unfinished last record is cut away.
async fn ship(
    spool: &Spool,
    producer: &Batches,
    folder: &Folder,
    at: &mut Place,
    end: Option<Place>,
) -> anyhow::Result<Progress> {
    if end.is_some_and(|end| *at >= end) {
        return Ok(Progress::Done);
    }
    let (from, active) = (*at, end.filter(|end| end.segment == at.segment));
    let chunk = active.map_or(CHUNK_BYTES, |end| CHUNK_BYTES.min(end.offset - at.offset));
    let bytes = folder.read(from, chunk)?;
    let parsed = segment::parse(&bytes);
    let Sent {
        acknowledged: shipped,
        failure,
    } = producer.send(&parsed.records).await;
    if let Some((_, next)) = shipped.checked_sub(1).map(|last| parsed.records[last]) {
        at.offset += next as u64;
        spool.shipped(next as u64);
    }
    metrics::counter!("gateway_spool_shipped_total").increment(shipped as u64);
    let exhausted = failure.is_none() && ((bytes.len() as u64) < CHUNK_BYTES || shipped == 0);
    if exhausted && active.is_none() && (parsed.tail != Tail::End || bytes.is_empty()) {
        cut(spool, folder, *at, parsed.tail)?;
        *at = Place::start_of(at.segment + 1);
    }
    if *at != from
        && let Err(cause) = folder.passed(*at)
    {
        // It is shipped all the same; whoever comes after us ships some again.
        let path = folder.path().display();
        warn!(spool.path = %path, error = %cause, "what is shipped cannot be noted");
    }
    if let Some(cause) = failure {
        return Err(cause.into());
    }
    ensure!(
        active.is_none() || parsed.tail == Tail::End || *at != from,
        "our spool is damaged"
    );
    let done = match end {
        Some(end) => *at >= end,
        None => at.segment > folder.segments()?.last().copied().unwrap_or(0),
    };
    Ok(if done { Progress::Done } else { Progress::Some })
}

/// Notes the end of a segment that nobody writes any more.
fn cut(spool: &Spool, folder: &Folder, at: Place, tail: Tail) -> io::Result<()> {
    let written = folder.written(at.segment);
    let lost = written.or_else(absent_is_empty)?.saturating_sub(at.offset);
    if tail != Tail::End && lost > 0 {
        metrics::counter!("gateway_spool_cut_total").increment(1);
        warn!(
            spool.path = %folder.path().display(), spool.segment = at.segment,
            spool.bytes = lost, ?tail, "the torn end of a spool is cut away"
        );
    }
    spool.shipped(lost);
    Ok(())
}

fn absent_is_empty(cause: io::Error) -> io::Result<u64> {
    if cause.kind() == io::ErrorKind::NotFound {
        Ok(0)
    } else {
        Err(cause)
    }
}
