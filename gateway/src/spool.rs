//! The usage spool: records of answered requests on disk until Kafka has them.
//!
//! A process writes into a folder of its own, which it holds by a file lock. A record is handed to
//! the operating system before its answer's last byte, so `kill -9` loses none; it is forced to the
//! disk soon after. What a dead process left, the next one takes over and ships.
//!
//! Records overwrite zeros that were put there before. A write that makes a file longer changes its
//! metadata, which waits for the file system's journal, and all requests of a thread would with it.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use nix::fcntl::{Flock, FlockArg};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};
use uuid::Uuid;

mod batch;
pub mod segment;
pub mod ship;

/// What a file has room for; it is followed by another, or gets longer while that is not ready.
const SEGMENT_BYTES: u64 = 4 * 1_024 * 1_024;
/// Zeros that are written or looked at together. Of more the page cache makes one large piece, and
/// to write into one costs more.
const BLANK_BYTES: usize = 16 * 1_024;
/// How long a record may be in the operating system's memory only.
const SYNC_EVERY: Duration = Duration::from_millis(100);

const LOCK: &str = "lock";
const SEGMENT: &str = "segment";

/// The spool of this process.
#[derive(Debug)]
pub struct Spool {
    root: PathBuf,
    own: Folder,
    max_bytes: u64,
    /// Bytes on disk that Kafka has not acknowledged, adopted ones included.
    waiting: AtomicU64,
    dirty: AtomicBool,
    writer: Mutex<Writer>,
}

/// A process's folder, held for as long as this lives.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    _lock: Flock<File>,
}

/// A place in a spool: the segment's number and the offset in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) segment: u64,
    pub(crate) offset: u64,
}

#[derive(Debug)]
struct Writer {
    file: Arc<File>,
    end: Place,
    /// The next segment, once it is ready.
    next: Option<Arc<File>>,
    /// Segments that are complete but not yet forced to the disk.
    closed: Vec<Arc<File>>,
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
    /// A new spool under `root` that holds at most `max_bytes`.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn create(root: &Path, max_bytes: u64) -> anyhow::Result<Self> {
        fs::create_dir_all(root).with_context(|| format!("create {}", root.display()))?;
        let own = Folder::create(root).with_context(|| format!("write in {}", root.display()))?;
        let end = Place {
            segment: 1,
            offset: 0,
        };
        let file = own.blank_segment(end.segment)?;
        let writer = Mutex::new(Writer {
            file,
            end,
            next: None,
            closed: Vec::new(),
        });
        let (root, waiting, dirty) = (root.to_owned(), AtomicU64::new(0), AtomicBool::new(false));
        Ok(Self {
            root,
            own,
            max_bytes,
            waiting,
            dirty,
            writer,
        })
    }

    /// Whether a spool could be made under `root`.
    ///
    /// # Errors
    /// When it could not.
    pub fn probe(root: &Path) -> anyhow::Result<()> {
        fs::create_dir_all(root).with_context(|| format!("create {}", root.display()))?;
        let folder =
            Folder::create(root).with_context(|| format!("write in {}", root.display()))?;
        fs::remove_dir_all(folder.path)?;
        Ok(())
    }

    /// Whether another record may be written.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) < self.max_bytes
    }

    /// Hands a record, framed by [`segment::frame_into`], to the operating system.
    ///
    /// # Errors
    /// When the spool is full or the disk refuses.
    pub fn append(&self, framed: &[u8]) -> Result<(), SpoolError> {
        let length = framed.len() as u64;
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        // The bound counts what requests already under way will add, hence twice.
        if self.waiting.load(Ordering::Relaxed) >= self.max_bytes.saturating_mul(2) {
            return Err(SpoolError::Full);
        }
        if writer.end.offset + length > SEGMENT_BYTES && writer.next.is_some() {
            self.rotate(&mut writer)?;
        }
        if let Err(cause) = writer.file.write_all_at(framed, writer.end.offset) {
            // Part of the record may stand there: cut it off, or leave the file behind.
            if writer.file.set_len(writer.end.offset).is_err() {
                self.rotate(&mut writer)?;
            }
            return Err(cause.into());
        }
        writer.end.offset += length;
        drop(writer);
        self.waiting.fetch_add(length, Ordering::Relaxed);
        self.dirty.store(true, Ordering::Release);
        Ok(())
    }

    /// Forces records to the disk, again and again, until the process stops.
    ///
    /// # Errors
    /// Never by itself.
    pub async fn keep_synced(self: Arc<Self>, stop: CancellationToken) -> anyhow::Result<()> {
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(SYNC_EVERY) => {}
            }
            self.sync().await;
            // Who stops needs no next file, and a slow disk must not keep the process.
            tokio::select! {
                () = stop.cancelled() => break,
                () = self.prepare() => {}
            }
        }
        self.sync().await;
        Ok(())
    }

    /// Makes the next segment ready, so that nobody waits for it.
    async fn prepare(self: &Arc<Self>) {
        let number = {
            let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
            if writer.next.is_some() {
                return;
            }
            writer.end.segment + 1
        };
        let this = Arc::clone(self);
        match tokio::task::spawn_blocking(move || this.own.blank_segment(number)).await {
            Ok(Ok(file)) => {
                let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
                writer.next = Some(file);
            }
            // The present one gets longer instead.
            Ok(Err(cause)) => warn!(error = %cause, "the usage spool's next file is not ready"),
            Err(cause) => error!(error = %cause, "preparing the usage spool's next file"),
        }
    }

    async fn sync(self: &Arc<Self>) {
        if !self.dirty.swap(false, Ordering::AcqRel) {
            return;
        }
        self.show_waiting();
        let files = {
            let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
            let mut files = std::mem::take(&mut writer.closed);
            files.push(Arc::clone(&writer.file));
            files
        };
        let work = move || files.iter().try_for_each(|file| file.sync_data());
        match tokio::task::spawn_blocking(work).await {
            Ok(Ok(())) => {}
            Ok(Err(cause)) => error!(error = %cause, "the usage spool cannot be forced to disk"),
            Err(cause) => error!(error = %cause, "forcing the usage spool to disk"),
        }
    }

    fn rotate(&self, writer: &mut Writer) -> io::Result<()> {
        let next = Place {
            segment: writer.end.segment + 1,
            offset: 0,
        };
        let file = match writer.next.take() {
            Some(file) => file,
            None => self.own.open_segment(next.segment)?,
        };
        let full = std::mem::replace(&mut writer.file, file);
        writer.closed.push(full);
        writer.end = next;
        Ok(())
    }

    /// Where the next record will stand.
    pub(crate) fn end(&self) -> Place {
        self.writer
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .end
    }

    pub(crate) fn own(&self) -> &Folder {
        &self.own
    }

    /// Counts bytes that Kafka acknowledged.
    pub(crate) fn shipped(&self, bytes: u64) {
        let less = |waiting: u64| Some(waiting.saturating_sub(bytes));
        self.waiting
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less)
            .ok();
        self.show_waiting();
    }

    /// Takes over the folders under the root that no process holds.
    pub(crate) fn adopt(&self) -> io::Result<Vec<Folder>> {
        let mut adopted = Vec::new();
        for entry in fs::read_dir(&self.root)? {
            let path = entry?.path();
            if path == self.own.path || !is_spool(&path) {
                continue;
            }
            let taken = Folder::take(&path).and_then(|taken| {
                let folder = taken.map(|folder| Ok((folder.bytes()?, folder)));
                folder.transpose()
            });
            match taken {
                Ok(Some((bytes, folder))) => {
                    self.waiting.fetch_add(bytes, Ordering::Relaxed);
                    info!(spool.path = %path.display(), spool.bytes = bytes, "adopting a spool");
                    adopted.push(folder);
                }
                Ok(None) => {}
                // The others, and our own, need not wait for this one.
                Err(cause) => {
                    let path = path.display();
                    warn!(spool.path = %path, error = %cause, "a spool cannot be adopted");
                }
            }
        }
        self.show_waiting();
        Ok(adopted)
    }

    fn show_waiting(&self) {
        let waiting = self.waiting.load(Ordering::Relaxed);
        #[expect(clippy::cast_precision_loss, reason = "a gauge")]
        metrics::gauge!("gateway_spool_waiting_bytes").set(waiting as f64);
    }
}

impl Folder {
    /// A new folder, visible only once it is held.
    fn create(root: &Path) -> io::Result<Self> {
        let name = Uuid::now_v7().simple().to_string();
        let hidden = root.join(format!(".{name}"));
        fs::create_dir(&hidden)?;
        let lock = File::create(hidden.join(LOCK))?;
        let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock).map_err(|(_, no)| no)?;
        let path = root.join(name);
        fs::rename(hidden, &path)?;
        Ok(Self { path, _lock: lock })
    }

    /// The folder at `path`, unless a process holds it or it is gone meanwhile.
    fn take(path: &Path) -> io::Result<Option<Self>> {
        let lock = match File::open(path.join(LOCK)) {
            Ok(lock) => lock,
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(cause) => return Err(cause),
        };
        match Flock::lock(lock, FlockArg::LockExclusiveNonblock) {
            // Whoever held it may have shipped and removed it in between.
            Ok(lock) if path.join(LOCK).exists() => Ok(Some(Self {
                path: path.to_owned(),
                _lock: lock,
            })),
            _ => Ok(None),
        }
    }

    fn open_segment(&self, number: u64) -> io::Result<Arc<File>> {
        let path = self.segment(number);
        Ok(Arc::new(
            OpenOptions::new().create_new(true).write(true).open(path)?,
        ))
    }

    /// A segment of zeros, which are on the disk.
    fn blank_segment(&self, number: u64) -> io::Result<Arc<File>> {
        let file = self.open_segment(number)?;
        let blank = || {
            for _ in 0..SEGMENT_BYTES / BLANK_BYTES as u64 {
                (&*file).write_all(&[0; BLANK_BYTES])?;
            }
            file.sync_all()
        };
        if let Err(cause) = blank() {
            fs::remove_file(self.segment(number)).ok();
            return Err(cause);
        }
        Ok(file)
    }

    /// How far a segment is written: where the zeros begin that it ends with.
    fn written(&self, number: u64) -> io::Result<u64> {
        let file = File::open(self.segment(number))?;
        let mut end = file.metadata()?.len();
        let mut piece = [0; BLANK_BYTES];
        while end > 0 {
            let begin = end.saturating_sub(BLANK_BYTES as u64);
            let read = file.read_at(&mut piece, begin)?;
            if let Some(last) = piece[..read].iter().rposition(|byte| *byte != 0) {
                return Ok(begin + last as u64 + 1);
            }
            end = begin;
        }
        Ok(0)
    }

    pub(crate) fn segment(&self, number: u64) -> PathBuf {
        self.path.join(format!("{number:010}.{SEGMENT}"))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The numbers of its segments, in order.
    pub(crate) fn segments(&self) -> io::Result<Vec<u64>> {
        let mut numbers = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let path = entry?.path();
            if path
                .extension()
                .is_some_and(|extension| extension == SEGMENT)
            {
                let stem = path.file_stem().and_then(|stem| stem.to_str());
                numbers.extend(stem.and_then(|stem| stem.parse::<u64>().ok()));
            }
        }
        numbers.sort_unstable();
        Ok(numbers)
    }

    fn bytes(&self) -> io::Result<u64> {
        let sizes = self
            .segments()?
            .into_iter()
            .map(|number| self.written(number));
        sizes.sum()
    }
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
    use super::*;

    #[tokio::test]
    async fn records_overwrite_zeros_and_make_no_file_longer() {
        let root = tempfile::tempdir().unwrap();
        let spool = Arc::new(Spool::create(root.path(), u64::MAX).unwrap());
        let record = segment::frame(&vec![7; 60_000]);
        let many = 3 * usize::try_from(SEGMENT_BYTES).unwrap() / record.len();
        for _ in 0..many {
            spool.prepare().await;
            spool.append(&record).unwrap();
        }
        let segments = spool.own.segments().unwrap();
        assert!(segments.len() >= 3);
        let (mut found, mut written) = (0, 0);
        for number in segments {
            let bytes = fs::read(spool.own.segment(number)).unwrap();
            assert_eq!(bytes.len() as u64, SEGMENT_BYTES);
            let parsed = segment::parse(&bytes);
            assert_eq!(parsed.tail, segment::Tail::Blank);
            found += parsed.records.len();
            written += spool.own.written(number).unwrap();
        }
        assert_eq!(found, many);
        assert_eq!(written, spool.own.bytes().unwrap());
        assert_eq!(written, (many * record.len()) as u64);
    }

    #[test]
    fn without_a_next_file_the_present_one_gets_longer() {
        let root = tempfile::tempdir().unwrap();
        let spool = Spool::create(root.path(), u64::MAX).unwrap();
        let record = segment::frame(&vec![7; 60_000]);
        while spool.end().offset <= SEGMENT_BYTES {
            spool.append(&record).unwrap();
        }
        let bytes = fs::read(spool.own.segment(1)).unwrap();
        assert_eq!(segment::parse(&bytes).tail, segment::Tail::End);
    }
}
