//! Places among the connections: so many, and of one address a share of them, so that one cannot
//! take them all. IPv6 addresses count by /64; trusted proxies may take any number, since they
//! bring the connections of many.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use super::head::Fault;

/// Most clients without a place that are told so at once; others are cut off.
const TOLD_MAX: usize = 64;

/// All places.
#[derive(Debug)]
pub(super) struct Places {
    max: usize,
    address_max: usize,
    taken: AtomicUsize,
    told: AtomicUsize,
    /// By who an address is.
    by_address: Mutex<HashMap<u64, usize>>,
}

/// A place, until this is dropped.
#[derive(Debug)]
pub(super) struct Place {
    of: Arc<Places>,
    kind: Kind,
}

/// There is no place.
#[derive(Debug)]
pub(super) struct Full {
    /// Why.
    pub(super) fault: Fault,
    /// What it takes to tell the client, if that is to be had.
    pub(super) told: Option<Place>,
}

#[derive(Debug)]
enum Kind {
    Taken(Option<u64>),
    Told,
}

impl Places {
    pub(super) fn new(max: usize, address_max: usize) -> Self {
        Self {
            max,
            address_max,
            taken: AtomicUsize::new(0),
            told: AtomicUsize::new(0),
            by_address: Mutex::default(),
        }
    }

    /// A place for `source`; `None` is a trusted proxy.
    pub(super) fn take(self: &Arc<Self>, source: Option<u64>) -> Result<Place, Full> {
        let place = |kind| {
            let of = Arc::clone(self);
            Place { of, kind }
        };
        let fault = match self.enter(source) {
            Ok(()) => return Ok(place(Kind::Taken(source))),
            Err(fault) => fault,
        };
        let told = self.told.fetch_add(1, Ordering::AcqRel);
        let told = Some(place(Kind::Told)).filter(|_| told < TOLD_MAX);
        Err(Full { fault, told })
    }

    fn enter(&self, source: Option<u64>) -> Result<(), Fault> {
        let leave = || self.taken.fetch_sub(1, Ordering::AcqRel);
        if self.taken.fetch_add(1, Ordering::AcqRel) >= self.max {
            leave();
            return Err(Fault::Crowded);
        }
        let Some(source) = source else { return Ok(()) };
        let mut by_address = self.by_address();
        let own = by_address.entry(source).or_default();
        if *own >= self.address_max {
            leave();
            return Err(Fault::Share);
        }
        *own += 1;
        Ok(())
    }

    fn leave(&self, source: Option<u64>) {
        self.taken.fetch_sub(1, Ordering::AcqRel);
        let Some(source) = source else { return };
        let mut by_address = self.by_address();
        if let Some(own) = by_address.get_mut(&source) {
            *own -= 1;
            if *own == 0 {
                by_address.remove(&source);
            }
        }
    }

    fn by_address(&self) -> std::sync::MutexGuard<'_, HashMap<u64, usize>> {
        self.by_address
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        match self.kind {
            Kind::Taken(source) => self.of.leave(source),
            Kind::Told => {
                self.of.told.fetch_sub(1, Ordering::AcqRel);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_takes_its_share_and_leaves_no_trace() {
        let places = Arc::new(Places::new(6, 2));
        let take = |source| places.take(source).map_err(|full| full.fault);
        let one: Vec<_> = (0..2).map(|_| take(Some(1)).unwrap()).collect();
        assert_eq!(take(Some(1)).unwrap_err(), Fault::Share);
        let proxy: Vec<_> = (0..3).map(|_| take(None).unwrap()).collect();
        let other = take(Some(2)).unwrap();
        assert_eq!(take(Some(3)).unwrap_err(), Fault::Crowded);
        drop((one, proxy, other));
        assert_eq!(places.taken.load(Ordering::Relaxed), 0);
        assert_eq!(places.told.load(Ordering::Relaxed), 0);
        assert!(places.by_address().is_empty());
    }

    #[test]
    fn of_those_without_a_place_some_are_told() {
        let places = Arc::new(Places::new(0, 1));
        let full = || places.take(Some(1)).unwrap_err();
        let all: Vec<_> = (0..2 * TOLD_MAX).map(|_| full()).collect();
        let told = all.iter().filter(|full| full.told.is_some()).count();
        assert_eq!(told, TOLD_MAX);
        drop(all);
        assert!(full().told.is_some());
    }
}
