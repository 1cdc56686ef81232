//! The usage spool: records of answered requests on disk until Kafka has them.
//!
//! A process writes into a folder of its own, which it holds by a file lock. A record is handed to
//! the operating system before its answer's last byte, so `kill -9` loses none; it is forced to the
//! disk soon after. What a dead process left, the next one takes over and ships.
//!
//! Records overwrite zeros that were put there before. A write that makes a file longer changes its
//! metadata, which waits for the file system's journal, and all requests of a thread would with it.
//!
//! Where the disk has no room for more zeros, requests are refused while what is there still holds
//! the records of those under way. To ship needs no room: whole segments go, the checkpoint and a
//! segment that is shipped to its end are overwritten where they stand.

use std::{
    fs::{self, File},
    io, mem,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use jiff::Timestamp;
use ops::clock::Clock;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};
use uuid::Uuid;

use folder::{Folder, Place};
use writer::{Next, Writer};

mod batch;
mod folder;
pub mod segment;
pub mod ship;
mod writer;

/// Zeros that are written or looked at together. Of more the page cache makes one large piece, and
/// to write into one costs more.
const BLANK_BYTES: usize = 16 * 1_024;
/// How long a record may be in the operating system's memory only.
const SYNC_EVERY: Duration = Duration::from_millis(100);
/// Pause after a segment could not be made.
const PREPARE_AGAIN: Duration = Duration::from_secs(1);
/// Nothing waits to be shipped.
const NOTHING: i64 = i64::MAX;

/// The spool of this process.
#[derive(Debug)]
pub struct Spool {
    root: PathBuf,
    /// Made with the first segment.
    own: OnceLock<Folder>,
    max_bytes: u64,
    clock: Clock,
    /// Bytes on disk that Kafka has not acknowledged, adopted ones included.
    waiting: AtomicU64,
    /// Whether the disk takes no more, as far as is known.
    stuck: AtomicBool,
    dirty: AtomicBool,
    /// When the oldest record that waits was written, or [`NOTHING`].
    oldest_us: AtomicI64,
    writer: Mutex<Writer>,
}

/// The spool is full.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// It holds as much as it may.
    #[error("the usage spool is full")]
    Full,
    /// The disk refused.
    #[error("the usage spool cannot be written: {0}")]
    Disk(#[from] io::Error),
}

impl Spool {
    /// A new spool under `root` that holds at most `max_bytes`. On a full disk it begins as one
    /// that refuses: to ship what dead processes left makes room.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn create(root: &Path, max_bytes: u64, clock: Clock) -> anyhow::Result<Self> {
        fs::create_dir_all(root).with_context(|| format!("create {}", root.display()))?;
        let spool = Self {
            root: root.to_owned(),
            own: OnceLock::new(),
            max_bytes,
            clock,
            waiting: AtomicU64::new(0),
            stuck: AtomicBool::new(false),
            dirty: AtomicBool::new(false),
            oldest_us: AtomicI64::new(NOTHING),
            writer: Mutex::new(Writer::new()),
        };
        match spool.make(1) {
            Err(cause) if !folder::is_full(&cause) => {
                return Err(cause).with_context(|| format!("write in {}", root.display()));
            }
            made => spool.made(made),
        };
        // So that they are seen before they first count.
        for name in ["shipped", "refused", "cut"] {
            metrics::counter!(format!("gateway_spool_{name}_total")).increment(0);
        }
        spool.show();
        Ok(spool)
    }

    /// Whether a spool could be made under `root`.
    ///
    /// # Errors
    /// When it could not.
    pub fn probe(root: &Path) -> anyhow::Result<()> {
        fs::create_dir_all(root).with_context(|| format!("create {}", root.display()))?;
        let folder =
            Folder::create(root).with_context(|| format!("write in {}", root.display()))?;
        fs::remove_dir_all(folder.path())?;
        Ok(())
    }

    /// Whether another record may be written.
    #[must_use]
    pub fn has_room(&self) -> bool {
        !self.is_stuck() && self.waiting.load(Ordering::Relaxed) < self.max_bytes
    }

    /// Whether the disk takes no more.
    pub(crate) fn is_stuck(&self) -> bool {
        self.stuck.load(Ordering::Relaxed)
    }

    /// Hands a record, framed by [`segment::frame_into`], to the operating system.
    ///
    /// # Errors
    /// When the spool is full or the disk refuses.
    pub fn append(&self, framed: &[u8]) -> Result<(), SpoolError> {
        let mut writer = self.writer();
        // The bound counts what requests already under way will add, hence twice.
        if self.waiting.load(Ordering::Relaxed) >= self.max_bytes.saturating_mul(2) {
            return Err(SpoolError::Full);
        }
        let written = writer.write(framed);
        self.judge(&writer);
        written?;
        // Before anybody can ship it.
        self.waiting
            .fetch_add(framed.len() as u64, Ordering::Relaxed);
        drop(writer);
        self.dirty.store(true, Ordering::Release);
        Ok(())
    }

    /// Forces records to the disk, again and again, until the process stops.
    ///
    /// # Errors
    /// Never by itself.
    pub async fn keep_synced(self: Arc<Self>, stop: CancellationToken) -> anyhow::Result<()> {
        let mut prepare_at = Instant::now();
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(SYNC_EVERY) => {}
            }
            self.sync().await;
            self.show();
            if Instant::now() < prepare_at {
                continue;
            }
            // Who stops needs no next file, and a slow disk must not keep the process.
            tokio::select! {
                () = stop.cancelled() => break,
                ready = self.prepare() => {
                    if !ready {
                        prepare_at = Instant::now() + PREPARE_AGAIN;
                    }
                }
            }
        }
        self.sync().await;
        Ok(())
    }

    /// Makes the next segment ready, so that nobody waits for it; whether it is.
    async fn prepare(self: &Arc<Self>) -> bool {
        let number = {
            let writer = self.writer();
            if matches!(writer.next, Next::Ready(_)) {
                return true;
            }
            writer.end.segment + 1
        };
        let this = Arc::clone(self);
        let made = tokio::task::spawn_blocking(move || this.make(number)).await;
        self.made(made.unwrap_or_else(|cause| Err(io::Error::other(cause))))
    }

    fn make(&self, number: u64) -> io::Result<Arc<File>> {
        let own = if let Some(own) = self.own.get() {
            own
        } else {
            let own = Folder::create(&self.root)?;
            self.own.get_or_init(|| own)
        };
        own.blank_segment(number)
    }

    /// Takes the next segment over, if it could be made; whether it could.
    fn made(&self, made: io::Result<Arc<File>>) -> bool {
        let mut writer = self.writer();
        let is_ready = made.is_ok();
        match made {
            Ok(file) => {
                writer.next = Next::Ready(file);
                writer.failed = false;
                if writer.present.is_none() {
                    writer.rotate();
                }
            }
            Err(cause) => {
                if !matches!(writer.next, Next::Impossible) {
                    warn!(error = %cause, "the usage spool's next file cannot be made");
                }
                writer.next = Next::Impossible;
            }
        }
        self.judge(&writer);
        is_ready
    }

    /// Notes whether the disk takes more.
    fn judge(&self, writer: &Writer) {
        let stuck = writer.is_stuck();
        if stuck == self.is_stuck() {
            return;
        }
        self.stuck.store(stuck, Ordering::Relaxed);
        if stuck {
            warn!("no room for usage records: billable requests are refused");
        } else {
            info!("there is room for usage records again");
        }
    }

    /// Where everything up to `at`, which is the end, is shipped and the disk has no room for
    /// another segment, the present one is overwritten from its beginning. Whether it is.
    pub(crate) fn begin_anew(&self, at: Place) -> io::Result<bool> {
        let Some(own) = self.own.get() else {
            return Ok(false);
        };
        if !self.is_stuck() || self.end() != at {
            return Ok(false);
        }
        // On the disk first: who adopts this must read from the beginning.
        own.note(Place::start_of(at.segment))?.sync_data()?;
        let mut writer = self.writer();
        let Some(present) = writer.present.clone().filter(|_| writer.end == at) else {
            return Ok(false);
        };
        // At least something, which shows that the disk takes it; never more than there is.
        let bytes = at.offset.max(1).min(present.metadata()?.len());
        if let Err(cause) = folder::blank(&present, bytes) {
            own.note(at)?;
            return Err(cause);
        }
        writer.end = Place::start_of(at.segment);
        writer.failed = false;
        self.judge(&writer);
        drop(writer);
        self.dirty.store(true, Ordering::Release);
        Ok(true)
    }

    async fn sync(self: &Arc<Self>) {
        if !self.dirty.swap(false, Ordering::AcqRel) {
            return;
        }
        let now_us = self.clock.now().as_microsecond();
        let (ours, relaxed) = (&self.oldest_us, Ordering::Relaxed);
        ours.compare_exchange(NOTHING, now_us, relaxed, relaxed)
            .ok();
        let (closed, present) = {
            let mut writer = self.writer();
            (mem::take(&mut writer.closed), writer.present.clone())
        };
        let work = move || {
            let mut files = closed.iter().chain(&present);
            let synced = files.try_for_each(|file| file.sync_data());
            synced.map_err(|cause| (closed, cause))
        };
        match tokio::task::spawn_blocking(work).await {
            Ok(Ok(())) => {}
            Ok(Err((closed, cause))) => {
                error!(error = %cause, "the usage spool cannot be forced to disk");
                self.writer().closed.extend(closed);
                self.dirty.store(true, Ordering::Release);
            }
            Err(cause) => error!(error = %cause, "forcing the usage spool to disk"),
        }
    }

    /// Where the next record will stand.
    pub(crate) fn end(&self) -> Place {
        self.writer().end
    }

    /// The folder of this process, once there is one.
    pub(crate) fn own(&self) -> Option<&Folder> {
        self.own.get()
    }

    fn writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts bytes that Kafka acknowledged.
    pub(crate) fn shipped(&self, bytes: u64) {
        let less = |waiting: u64| Some(waiting.saturating_sub(bytes));
        self.waiting
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less)
            .ok();
    }

    /// Notes when the oldest record that waits was written, if one waits.
    pub(crate) fn set_oldest(&self, oldest: Option<Timestamp>) {
        let oldest_us = oldest.map_or(NOTHING, Timestamp::as_microsecond);
        self.oldest_us.store(oldest_us, Ordering::Relaxed);
    }

    /// Takes over the folders under the root that no process holds, each with where begins what is
    /// not shipped of it.
    pub(crate) fn adopt(&self) -> io::Result<Vec<(Folder, Place)>> {
        let own = self.own.get().map(Folder::path);
        let mut adopted = Vec::new();
        for entry in fs::read_dir(&self.root)? {
            let path = entry?.path();
            if Some(path.as_path()) == own || !is_spool(&path) {
                continue;
            }
            match take(&path) {
                Ok(Some((folder, at, bytes))) => {
                    self.waiting.fetch_add(bytes, Ordering::Relaxed);
                    info!(spool.path = %path.display(), spool.bytes = bytes, "adopting a spool");
                    adopted.push((folder, at));
                }
                Ok(None) => {}
                // The others, and our own, need not wait for this one.
                Err(cause) => {
                    let path = path.display();
                    warn!(spool.path = %path, error = %cause, "a spool cannot be adopted");
                }
            }
        }
        Ok(adopted)
    }

    /// Shows how full it is, and how old what waits.
    fn show(&self) {
        let oldest_us = self.oldest_us.load(Ordering::Relaxed);
        let age_us = self.clock.now().as_microsecond().saturating_sub(oldest_us);
        let waiting = self.waiting.load(Ordering::Relaxed);
        #[expect(clippy::cast_precision_loss, reason = "gauges")]
        for (name, value) in [
            ("gateway_spool_waiting_bytes", waiting as f64),
            ("gateway_spool_max_bytes", self.max_bytes as f64),
            ("gateway_spool_oldest_seconds", age_us.max(0) as f64 / 1e6),
        ] {
            metrics::gauge!(name).set(value);
        }
    }
}

/// The folder at `path`, unless a process holds it, with where begins what is not shipped of it and
/// how many bytes that is.
fn take(path: &Path) -> io::Result<Option<(Folder, Place, u64)>> {
    let Some(folder) = Folder::take(path)? else {
        return Ok(None);
    };
    let at = folder.begin()?;
    let bytes = folder.bytes_from(at)?;
    Ok(Some((folder, at, bytes)))
}

fn is_spool(path: &Path) -> bool {
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    Uuid::try_parse(name).is_ok() && path.is_dir()
}

#[cfg(test)]
mod tests {
    use super::{writer::SEGMENT_BYTES, *};

    fn spool(root: &Path) -> Arc<Spool> {
        Arc::new(Spool::create(root, u64::MAX, Clock::system()).unwrap())
    }

    fn own(spool: &Spool) -> &Folder {
        spool.own.get().unwrap()
    }

    #[tokio::test]
    async fn records_overwrite_zeros_and_make_no_file_longer() {
        let root = tempfile::tempdir().unwrap();
        let spool = spool(root.path());
        let record = segment::frame(&vec![7; 60_000]);
        let many = 3 * usize::try_from(SEGMENT_BYTES).unwrap() / record.len();
        for _ in 0..many {
            assert!(spool.prepare().await);
            spool.append(&record).unwrap();
        }
        let own = own(&spool);
        let segments = own.segments().unwrap();
        assert!(segments.len() >= 3);
        let (mut found, mut written) = (0, 0);
        for number in segments {
            let bytes = fs::read(own.segment(number)).unwrap();
            assert_eq!(bytes.len() as u64, SEGMENT_BYTES);
            let parsed = segment::parse(&bytes);
            assert_eq!(parsed.tail, segment::Tail::Blank);
            found += parsed.records.len();
            written += own.written(number).unwrap();
        }
        assert_eq!(found, many);
        assert_eq!(written, own.bytes_from(own.begin().unwrap()).unwrap());
        assert_eq!(written, (many * record.len()) as u64);
        assert_eq!(written, spool.waiting.load(Ordering::Relaxed));
    }

    #[test]
    fn without_a_next_file_the_present_one_gets_longer() {
        let root = tempfile::tempdir().unwrap();
        let spool = spool(root.path());
        let record = segment::frame(&vec![7; 60_000]);
        while spool.end().offset <= SEGMENT_BYTES {
            spool.append(&record).unwrap();
        }
        let bytes = fs::read(own(&spool).segment(1)).unwrap();
        assert_eq!(segment::parse(&bytes).tail, segment::Tail::End);
    }

    #[tokio::test]
    async fn a_write_that_fails_refuses_all_others_until_one_succeeds() {
        let root = tempfile::tempdir().unwrap();
        let spool = spool(root.path());
        let record = segment::frame(b"one");
        spool.append(&record).unwrap();
        let damage = || {
            // Cannot be written.
            let file = File::open(own(&spool).segment(1)).unwrap();
            spool.writer().present = Some(Arc::new(file));
        };
        damage();
        assert!(spool.has_room());
        spool.append(&record).unwrap_err();
        assert!(!spool.has_room());
        assert!(spool.prepare().await);
        assert!(spool.has_room());
        damage();
        spool.append(&record).unwrap();
        assert_eq!(spool.end().segment, 2, "it is written to the next one");
        let counted = spool.waiting.load(Ordering::Relaxed);
        assert_eq!(counted, 2 * record.len() as u64);
    }

    #[test]
    fn where_no_next_file_can_be_made_the_present_one_keeps_a_reserve_and_begins_anew() {
        let root = tempfile::tempdir().unwrap();
        let spool = spool(root.path());
        assert!(!spool.made(Err(io::ErrorKind::StorageFull.into())));
        let record = segment::frame(&vec![7; 60_000]);
        while spool.has_room() {
            spool.append(&record).unwrap();
        }
        let end = spool.end();
        assert!(end.segment == 1 && end.offset < SEGMENT_BYTES / 2);
        // Those under way still have their place, and are shipped first.
        spool.append(&record).unwrap();
        assert!(!spool.begin_anew(end).unwrap() && !spool.has_room());
        let end = spool.end();
        own(&spool).passed(end).unwrap();
        assert!(spool.begin_anew(end).unwrap() && spool.has_room());
        let (own, start) = (own(&spool), Place::start_of(1));
        assert_eq!((own.begin().unwrap(), spool.end()), (start, start));
        assert_eq!(own.bytes_from(start).unwrap(), 0);
        spool.append(&record).unwrap();
        let bytes = own.read(start, SEGMENT_BYTES).unwrap();
        let parsed = segment::parse(&bytes);
        assert_eq!(
            (parsed.records.len(), parsed.tail),
            (1, segment::Tail::Blank)
        );
    }
}
