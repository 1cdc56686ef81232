//! A process's folder in the spool: a lock, segments by number, and how far they are shipped.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use contracts::event::UsageRecorded;
use jiff::Timestamp;
use nix::fcntl::{Flock, FlockArg};
use prost::Message as _;
use uuid::Uuid;

use super::{BLANK_BYTES, segment, writer::SEGMENT_BYTES};

const LOCK: &str = "lock";
const SEGMENT: &str = "segment";
const CHECKPOINT: &str = "checkpoint";
/// Enough of a segment to find the first record in it; ours are a few hundred bytes.
const PEEK_BYTES: usize = 4 * 1_024;

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

impl Place {
    pub(crate) const fn start_of(segment: u64) -> Self {
        Self { segment, offset: 0 }
    }

    /// As a checkpoint says it: always as long, and with a CRC.
    fn to_text(self) -> String {
        let place = format!("{:020} {:020}", self.segment, self.offset);
        format!("{place} {:08x}\n", crc32fast::hash(place.as_bytes()))
    }

    fn from_text(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let mut number = || words.next()?.parse().ok();
        let place = Self {
            segment: number()?,
            offset: number()?,
        };
        (place.to_text() == text).then_some(place)
    }
}

impl Folder {
    /// A new folder, visible only once it is held.
    pub(super) fn create(root: &Path) -> io::Result<Self> {
        let name = Uuid::now_v7().simple().to_string();
        let hidden = root.join(format!(".{name}"));
        let path = root.join(name);
        let make = || {
            fs::create_dir(&hidden)?;
            // While there is room: later ones overwrite it.
            fs::write(hidden.join(CHECKPOINT), Place::start_of(1).to_text())?;
            let lock = File::create(hidden.join(LOCK))?;
            let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock).map_err(|(_, no)| no)?;
            fs::rename(&hidden, &path)?;
            Ok(lock)
        };
        match make() {
            Ok(lock) => Ok(Self { path, _lock: lock }),
            Err(cause) => {
                fs::remove_dir_all(&hidden).ok();
                Err(cause)
            }
        }
    }

    /// The folder at `path`, unless a process holds it or it is gone meanwhile.
    pub(super) fn take(path: &Path) -> io::Result<Option<Self>> {
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

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn segment(&self, number: u64) -> PathBuf {
        self.path.join(format!("{number:010}.{SEGMENT}"))
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

    /// A segment of zeros, which are on the disk. Nobody may be writing one of this number.
    pub(super) fn blank_segment(&self, number: u64) -> io::Result<Arc<File>> {
        let path = self.segment(number);
        let mut options = OpenOptions::new();
        // One that was begun before may have been left behind.
        let file = options
            .create(true)
            .truncate(true)
            .write(true)
            .open(&path)?;
        let made = blank(&file, SEGMENT_BYTES).and_then(|()| file.sync_all());
        match made {
            Ok(()) => Ok(Arc::new(file)),
            Err(cause) => {
                fs::remove_file(path).ok();
                Err(cause)
            }
        }
    }

    /// How far a segment is written: where the zeros begin that it ends with.
    pub(crate) fn written(&self, number: u64) -> io::Result<u64> {
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

    /// At most `limit` bytes at a place; none where there is no such segment.
    pub(crate) fn read(&self, at: Place, limit: u64) -> io::Result<Vec<u8>> {
        let file = match File::open(self.segment(at.segment)) {
            Ok(file) => file,
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(cause) => return Err(cause),
        };
        let rest = file.metadata()?.len().saturating_sub(at.offset).min(limit);
        let mut bytes = vec![0; usize::try_from(rest).unwrap_or(usize::MAX)];
        file.read_exact_at(&mut bytes, at.offset)?;
        Ok(bytes)
    }

    /// Where begins what is not shipped, as far as is known: no later, but perhaps earlier.
    pub(crate) fn begin(&self) -> io::Result<Place> {
        let first = self.segments()?.first().copied().unwrap_or(1);
        // One that is torn or cannot be read only makes us ship more than needed.
        let text = fs::read_to_string(self.path.join(CHECKPOINT)).ok();
        let place = text.and_then(|text| Place::from_text(&text));
        // Whole segments go before it is written.
        let place = place.filter(|place| place.segment >= first);
        Ok(place.unwrap_or(Place::start_of(first)))
    }

    /// How many bytes there are from a place on.
    pub(crate) fn bytes_from(&self, at: Place) -> io::Result<u64> {
        let numbers = self.segments()?.into_iter();
        let sizes = numbers
            .filter(|number| *number >= at.segment)
            .map(|number| {
                let before = if number == at.segment { at.offset } else { 0 };
                Ok(self.written(number)?.saturating_sub(before))
            });
        sizes.sum()
    }

    /// When the first record from a place on was written, if it is there.
    pub(crate) fn oldest_from(&self, at: Place) -> Option<Timestamp> {
        let numbers = self.segments().ok()?.into_iter();
        let mut records = numbers
            .filter(|number| *number >= at.segment)
            .filter_map(|number| {
                let bytes = self.read(at.max(Place::start_of(number)), PEEK_BYTES as u64);
                let bytes = bytes.ok()?;
                let (record, _) = *segment::parse(&bytes).records.first()?;
                UsageRecorded::decode(record).ok()?.time().ok()
            });
        records.next()
    }

    /// Everything before a place is shipped. Whole segments go first: that needs no room, and makes
    /// some. The checkpoint is overwritten where it stands, which needs none either.
    pub(crate) fn passed(&self, at: Place) -> io::Result<()> {
        let numbers = self.segments()?.into_iter();
        for number in numbers.filter(|number| *number < at.segment) {
            fs::remove_file(self.segment(number))?;
        }
        self.note(at).map(drop)
    }

    /// Writes a place down as the checkpoint.
    pub(super) fn note(&self, at: Place) -> io::Result<File> {
        let mut options = OpenOptions::new();
        let options = options.create(true).truncate(false).write(true);
        let file = options.open(self.path.join(CHECKPOINT))?;
        file.write_all_at(at.to_text().as_bytes(), 0)?;
        Ok(file)
    }
}

/// Overwrites so many bytes at the beginning of a file with zeros.
pub(super) fn blank(file: &File, bytes: u64) -> io::Result<()> {
    let piece = [0; BLANK_BYTES];
    let mut at = 0;
    while at < bytes {
        let length = (bytes - at).min(BLANK_BYTES as u64);
        let piece = &piece[..usize::try_from(length).unwrap_or(BLANK_BYTES)];
        file.write_all_at(piece, at)?;
        at += length;
    }
    Ok(())
}

/// Whether there was no room on the disk, or not for us.
pub(super) fn is_full(cause: &io::Error) -> bool {
    matches!(
        cause.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_checkpoint_or_a_segment_that_is_gone_leads_to_the_first_that_is_there() {
        let root = tempfile::tempdir().unwrap();
        let folder = Folder::create(root.path()).unwrap();
        let begin = || folder.begin().unwrap();
        assert_eq!(begin(), Place::start_of(1));
        for number in 1..=3 {
            folder.blank_segment(number).unwrap();
        }
        let place = Place {
            segment: 2,
            offset: 77,
        };
        let length = || fs::read(folder.path.join(CHECKPOINT)).unwrap().len();
        let before = length();
        folder.passed(place).unwrap();
        assert_eq!((begin(), length()), (place, before));
        assert_eq!(folder.segments().unwrap(), [2, 3]);
        // Dropped, and then the process was killed.
        fs::remove_file(folder.segment(2)).unwrap();
        assert_eq!(begin(), Place::start_of(3));
        let (before, whole) = (Place::start_of(1).to_text(), place.to_text());
        assert_eq!(Place::from_text(&whole), Some(place));
        for at in 1..whole.len() {
            let torn = whole[..at].to_owned() + &before[at..];
            let read = Place::from_text(&torn);
            assert!(read.is_none() || torn == whole || torn == before, "{torn}");
            assert_eq!(Place::from_text(&whole[..at]), None);
        }
        fs::write(folder.path.join(CHECKPOINT), &whole[..7]).unwrap();
        assert_eq!(begin(), Place::start_of(3));
    }
}
