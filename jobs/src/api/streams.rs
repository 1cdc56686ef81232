//! How many event streams may be open: in all, and of one tenant, so that nobody takes them all.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use contracts::id::TenantId;

/// The open streams. Clones share the count.
#[derive(Clone, Debug)]
pub struct Streams {
    max: usize,
    tenant_max: usize,
    open: Arc<Mutex<HashMap<TenantId, usize>>>,
}

/// The right to keep a stream open, for as long as this lives.
#[derive(Debug)]
pub(super) struct Permit {
    streams: Streams,
    tenant: TenantId,
}

impl Streams {
    /// At most `max` streams, and `tenant_max` of one tenant.
    #[must_use]
    pub fn new(max: usize, tenant_max: usize) -> Self {
        Self {
            max,
            tenant_max,
            open: Arc::default(),
        }
    }

    /// One more stream of `tenant`, if there may be one.
    pub(super) fn open(&self, tenant: TenantId) -> Option<Permit> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = open.values().sum();
        let own = open.get(&tenant).copied().unwrap_or(0);
        if all >= self.max || own >= self.tenant_max {
            return None;
        }
        open.insert(tenant, own + 1);
        let streams = self.clone();
        Some(Permit { streams, tenant })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let open = &self.streams.open;
        let mut open = open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = open.get_mut(&self.tenant) {
            *own -= 1;
            if *own == 0 {
                open.remove(&self.tenant);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(second: i64) -> TenantId {
        TenantId::generate(jiff::Timestamp::from_second(second).unwrap())
    }

    #[test]
    fn one_tenant_leaves_room_for_the_others() {
        let streams = Streams::new(3, 2);
        let (greedy, other, third) = (tenant(1), tenant(2), tenant(3));
        let held: Vec<_> = (0..5).filter_map(|_| streams.open(greedy)).collect();
        assert_eq!(held.len(), 2);
        let others = streams.open(other).unwrap();
        assert!(streams.open(third).is_none(), "as many as may be in all");
        drop(held);
        assert!(streams.open(third).is_some());
        assert!(streams.open(greedy).is_some());
        drop(others);
        assert_eq!(streams.open.lock().unwrap().len(), 0);
    }
}
