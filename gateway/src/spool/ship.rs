//! Shipping: spooled records to Kafka in order, the checkpoint after their acknowledgement.
//!
//! A crash between the two ships some again, with the same identities.

use std::{
    fs::{self, File},
    io::{self, Read as _, Seek as _, SeekFrom},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use contracts::event::USAGE_RECORDED;
use ops::{config::KafkaOptions, kafka};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::spool::{
    Folder, Place, Spool,
    batch::{Batches, Sent},
    segment::{self, RECORD_MAX_BYTES, Tail},
};

/// Bytes read and records sent at a time.
const CHUNK_BYTES: usize = 4 * RECORD_MAX_BYTES;
/// Pause between looks at an empty spool.
const IDLE_POLL: Duration = Duration::from_millis(50);
/// Pause after a failure.
const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// How often spools of dead processes are looked for.
const ADOPT_EVERY: Duration = Duration::from_secs(5);
/// How long a stopping process goes on shipping; what is left, the next one adopts.
const LAST_SHIPMENT: Duration = Duration::from_secs(3);

const CHECKPOINT: &str = "checkpoint";

/// Ships the spool of this process, and of those that died.
#[derive(Debug)]
pub struct Shipper {
    spool: Arc<Spool>,
    kafka: KafkaOptions,
    adopted: Vec<Folder>,
    /// Adopted ones that could not be shipped; they are tried again after the next look.
    set_aside: Vec<Folder>,
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
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    /// Ships with one producer until it fails; returns when the process stops and nothing is left.
    async fn ship_on(&mut self, stop: &CancellationToken) -> anyhow::Result<()> {
        kafka::ensure_topics(&self.kafka, &[USAGE_RECORDED]).await?;
        let producer = Batches::new(&self.kafka, self.kafka.topic(USAGE_RECORDED))?;
        let mut looked: Option<Instant> = None;
        loop {
            if looked.is_none_or(|looked| looked.elapsed() >= ADOPT_EVERY) {
                self.adopt().context("look for spools of dead processes")?;
                looked = Some(Instant::now());
            }
            // Asked before shipping: what was written until then is shipped when it is Done.
            let last = stop.is_cancelled();
            let own = self.spool.own();
            let own = self.ship(&producer, own, Some(self.spool.end())).await?;
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
        for folder in self.spool.adopt()? {
            // Shipping it will say what is wrong with a checkpoint that cannot be read.
            if let Ok(Some(at)) = read_checkpoint(&folder) {
                self.spool.shipped(at.offset);
            }
            self.adopted.push(folder);
        }
        Ok(())
    }

    /// Ships one chunk of an adopted folder. One that fails is set aside, so that nothing else
    /// waits for it.
    async fn ship_adopted(&mut self, producer: &Batches) -> Progress {
        let Some(folder) = self.adopted.pop() else {
            return Progress::Done;
        };
        let shipped = match self.ship(producer, &folder, None).await {
            Ok(Progress::Done) => fs::remove_dir_all(folder.path())
                .map(|()| Progress::Done)
                .map_err(Into::into),
            shipped => shipped,
        };
        let path = folder.path().display().to_string();
        match shipped {
            Ok(Progress::Done) => info!(spool.path = path, "the adopted spool is shipped"),
            Ok(Progress::Some) => self.adopted.push(folder),
            Err(cause) => {
                let error = format!("{cause:#}");
                warn!(
                    spool.path = path,
                    error, "an adopted spool cannot be shipped"
                );
                self.set_aside.push(folder);
            }
        }
        Progress::Some
    }

    /// Ships one chunk of a folder. `end` is where its writer stands; without one there is none,
    /// and an unfinished last record is cut away.
    async fn ship(
        &self,
        producer: &Batches,
        folder: &Folder,
        end: Option<Place>,
    ) -> anyhow::Result<Progress> {
        let segments = folder.segments()?;
        let from = match read_checkpoint(folder)? {
            Some(at) => at,
            None => Place {
                segment: segments.first().copied().unwrap_or(1),
                offset: 0,
            },
        };
        let mut at = from;
        let active = end.filter(|end| end.segment == at.segment);
        let bytes = read_from(folder, at, active)?;
        let parsed = segment::parse(&bytes);
        let Sent {
            acknowledged: shipped,
            failure,
        } = producer.send(&parsed.records).await;
        if let Some((_, next)) = shipped.checked_sub(1).map(|last| parsed.records[last]) {
            at.offset += next as u64;
        }
        self.spool.shipped(at.offset - from.offset);
        let exhausted = failure.is_none() && (bytes.len() < CHUNK_BYTES || shipped == 0);
        if exhausted && active.is_none() && (parsed.tail != Tail::End || bytes.is_empty()) {
            self.cut(folder, at, parsed.tail)?;
            at = Place {
                segment: at.segment + 1,
                offset: 0,
            };
        }
        if at != from {
            write_checkpoint(folder, at)?;
            drop_before(folder, at.segment)?;
        }
        metrics::counter!("gateway_spool_shipped_total").increment(shipped as u64);
        if let Some(cause) = failure {
            return Err(cause.into());
        }
        ensure!(
            active.is_none() || parsed.tail == Tail::End || at != from,
            "our spool is damaged"
        );
        let last = segments.last().copied().unwrap_or(0);
        let done = match end {
            Some(end) => at >= end,
            None => at.segment > last,
        };
        Ok(if done { Progress::Done } else { Progress::Some })
    }

    /// Notes the end of a segment that nobody writes any more.
    fn cut(&self, folder: &Folder, at: Place, tail: Tail) -> io::Result<()> {
        let written = folder.written(at.segment);
        let lost = written.or_else(absent_is_empty)?.saturating_sub(at.offset);
        if tail != Tail::End && lost > 0 {
            metrics::counter!("gateway_spool_cut_total").increment(1);
            warn!(
                spool.path = %folder.path().display(), spool.segment = at.segment,
                spool.bytes = lost, ?tail, "the torn end of a spool is cut away"
            );
        }
        self.spool.shipped(lost);
        Ok(())
    }
}

/// Up to a chunk of bytes at a place, as far as the segment's writer has got.
fn read_from(folder: &Folder, at: Place, active: Option<Place>) -> io::Result<Vec<u8>> {
    let mut file = match File::open(folder.segment(at.segment)) {
        Ok(file) => file,
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(cause) => return Err(cause),
    };
    file.seek(SeekFrom::Start(at.offset))?;
    let written = active.map_or(u64::MAX, |end| end.offset.saturating_sub(at.offset));
    let mut bytes = Vec::new();
    file.take(written.min(CHUNK_BYTES as u64))
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn read_checkpoint(folder: &Folder) -> io::Result<Option<Place>> {
    let text = match fs::read_to_string(folder.path().join(CHECKPOINT)) {
        Ok(text) => text,
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(cause) => return Err(cause),
    };
    // One that cannot be read only makes us ship more than needed.
    let place = text.trim().split_once(' ').and_then(|(segment, offset)| {
        Some(Place {
            segment: segment.parse().ok()?,
            offset: offset.parse().ok()?,
        })
    });
    Ok(place)
}

fn write_checkpoint(folder: &Folder, at: Place) -> io::Result<()> {
    let next = folder.path().join("checkpoint.next");
    fs::write(&next, format!("{} {}\n", at.segment, at.offset))?;
    fs::rename(next, folder.path().join(CHECKPOINT))
}

fn drop_before(folder: &Folder, segment: u64) -> io::Result<()> {
    for number in folder
        .segments()?
        .into_iter()
        .filter(|number| *number < segment)
    {
        fs::remove_file(folder.segment(number))?;
    }
    Ok(())
}

fn absent_is_empty(cause: io::Error) -> io::Result<u64> {
    if cause.kind() == io::ErrorKind::NotFound {
        Ok(0)
    } else {
        Err(cause)
    }
}
