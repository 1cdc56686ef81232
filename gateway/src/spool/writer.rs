//! Where the next record goes: the present segment, and the one after it.

use std::{fs::File, io, os::unix::fs::FileExt as _, sync::Arc};

use super::folder::Place;

/// What a file has room for; it is followed by another, or gets longer while that is not ready.
pub(super) const SEGMENT_BYTES: u64 = 4 * 1_024 * 1_024;
/// What a segment keeps for requests under way once there can be no next one: about one record for
/// each connection that there may be.
const RESERVE_BYTES: u64 = 3 * 1_024 * 1_024;
/// The end of a spool.
#[derive(Debug)]
pub(super) struct Writer {
    /// The present segment; there is none until one could be made.
    pub(super) present: Option<Arc<File>>,
    pub(super) end: Place,
    pub(super) next: Next,
    /// Whether the last write failed.
    pub(super) failed: bool,
    /// Segments that are complete but not yet forced to the disk.
    pub(super) closed: Vec<Arc<File>>,
}

/// The segment after the present one.
#[derive(Debug)]
pub(super) enum Next {
    /// It will be made soon.
    Awaited,
    /// It is there.
    Ready(Arc<File>),
    /// It could not be made.
    Impossible,
}

impl Writer {
    /// Before any segment.
    pub(super) fn new() -> Self {
        Self {
            present: None,
            end: Place::start_of(0),
            next: Next::Awaited,
            failed: false,
            closed: Vec::new(),
        }
    }

    /// Whether the disk takes no more, as far as is known.
    pub(super) fn is_stuck(&self) -> bool {
        let last = self.present.is_none() || self.end.offset + RESERVE_BYTES > SEGMENT_BYTES;
        self.failed || last && matches!(self.next, Next::Impossible)
    }

    /// Hands a record to the operating system.
    pub(super) fn write(&mut self, framed: &[u8]) -> io::Result<()> {
        if self.end.offset + framed.len() as u64 > SEGMENT_BYTES {
            self.rotate();
        }
        let written = match self.put(framed) {
            // What is wrong may be wrong with this file only.
            Err(_) if self.rotate() => self.put(framed),
            written => written,
        };
        self.failed = written.is_err();
        written
    }

    fn put(&mut self, framed: &[u8]) -> io::Result<()> {
        let Some(file) = &self.present else {
            return Err(io::ErrorKind::StorageFull.into());
        };
        if let Err(cause) = file.write_all_at(framed, self.end.offset) {
            // Part of the record may stand there.
            file.set_len(self.end.offset).ok();
            return Err(cause);
        }
        self.end.offset += framed.len() as u64;
        Ok(())
    }

    /// Goes on to the next segment, if it is ready; whether it is.
    pub(super) fn rotate(&mut self) -> bool {
        let Next::Ready(next) = &self.next else {
            return false;
        };
        self.closed.extend(self.present.replace(Arc::clone(next)));
        self.end = Place::start_of(self.end.segment + 1);
        self.next = Next::Awaited;
        true
    }
}
