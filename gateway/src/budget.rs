//! Bytes that requests hold, bounded in sum: bodies as they come, answers as they are captured or
//! passed on, long heads, and what HTTP/2 keeps for its connections.
//!
//! Half of the sum is for the wire, which is whatever is held before anybody is known; half is for
//! tenants, of which one may hold half. So neither strangers nor one tenant can take the room of
//! the others. What every request holds is not counted: the number of connections bounds it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::{Bytes, BytesMut};
use contracts::{
    id::TenantId,
    problem::{Code, Problem},
};
use metrics::{Counter, Gauge, counter, gauge};

use crate::answer::unavailable;

/// Bytes of a request's body and answer that are not counted.
pub const FREE_BYTES: usize = 8 * 1_024;
/// What is read at once of a long body, and kept until the next reading.
pub const READ_BYTES: usize = 64 * 1_024;
/// Seconds after which there may be room.
const RETRY_AFTER_SECONDS: u64 = 1;

/// How much may be held. Gauges are of what is.
#[derive(Debug)]
pub struct Budget {
    wire_max: usize,
    tenants_max: usize,
    tenant_max: usize,
    held: Mutex<Held>,
    gauges: [Gauge; 2],
    refused: [Counter; 3],
}

#[derive(Debug, Default)]
struct Held {
    wire: usize,
    tenants: usize,
    by_tenant: HashMap<TenantId, usize>,
}

/// What one request, or a connection, holds, until this is dropped.
#[derive(Debug, Default)]
pub struct Hold {
    budget: Option<Arc<Budget>>,
    wire: usize,
    tenant: Option<TenantId>,
    /// What was asked for, of which all but [`FREE_BYTES`] is counted.
    asked: usize,
    counted: usize,
}

/// Where a request's bytes are counted.
#[derive(Debug)]
pub struct Account<'a> {
    /// By whom.
    pub budget: &'a Arc<Budget>,
    /// For whom.
    pub tenant: TenantId,
    /// With what.
    pub hold: &'a mut Hold,
}

/// There is no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Lack {
    /// Not before anybody is known.
    #[error("no room on the wire")]
    Wire,
    /// Not for any tenant.
    #[error("no room for tenants")]
    Tenants,
    /// Not for this tenant, who holds its share.
    #[error("no room in the tenant's share")]
    Share,
}

/// Bytes that come bit by bit, whose memory is counted before it is taken.
#[derive(Debug)]
pub struct Gathered {
    bytes: BytesMut,
    most: usize,
}

/// Bytes that are counted for as long as anybody has them.
struct Counted<H> {
    bytes: Bytes,
    /// Never read: it counts for as long as it is there.
    #[expect(dead_code, reason = "held, not read")]
    hold: H,
}

impl Budget {
    /// Nothing is held yet, and at most `max` bytes may be.
    #[must_use]
    pub fn new(max: usize) -> Self {
        let refused =
            |limit: &'static str| counter!("gateway_held_refused_total", "limit" => limit);
        Self {
            wire_max: max / 2,
            tenants_max: max / 2,
            tenant_max: max / 4,
            held: Mutex::default(),
            gauges: ["wire", "tenants"].map(|of| gauge!("gateway_held_bytes", "of" => of)),
            refused: ["wire", "tenants", "share"].map(refused),
        }
    }

    /// Has `hold` hold so many bytes more, of nobody who is known.
    ///
    /// # Errors
    /// When there is no room.
    pub fn add_wire(self: &Arc<Self>, hold: &mut Hold, bytes: usize) -> Result<(), Lack> {
        let mut sums = self.lock();
        if sums.wire + bytes > self.wire_max {
            return Err(self.refuse(Lack::Wire));
        }
        sums.wire += bytes;
        drop(sums);
        self.gauges[0].increment(float(bytes));
        hold.wire += bytes;
        hold.budget.get_or_insert_with(|| Arc::clone(self));
        Ok(())
    }

    fn add(self: &Arc<Self>, hold: &mut Hold, tenant: TenantId, more: usize) -> Result<(), Lack> {
        let mut sums = self.lock();
        let own = sums.by_tenant.get(&tenant).copied().unwrap_or(0);
        if own + more > self.tenant_max {
            return Err(self.refuse(Lack::Share));
        }
        if sums.tenants + more > self.tenants_max {
            return Err(self.refuse(Lack::Tenants));
        }
        sums.tenants += more;
        sums.by_tenant.insert(tenant, own + more);
        drop(sums);
        self.gauges[1].increment(float(more));
        hold.counted += more;
        hold.tenant = Some(tenant);
        hold.budget.get_or_insert_with(|| Arc::clone(self));
        Ok(())
    }

    fn refuse(&self, lack: Lack) -> Lack {
        self.refused[lack as usize].increment(1);
        lack
    }

    fn give_back(&self, hold: &Hold) {
        let mut sums = self.lock();
        sums.wire -= hold.wire;
        sums.tenants -= hold.counted;
        if let Some(tenant) = hold.tenant
            && let Some(own) = sums.by_tenant.get_mut(&tenant)
        {
            *own -= hold.counted;
            if *own == 0 {
                sums.by_tenant.remove(&tenant);
            }
        }
        drop(sums);
        self.gauges[0].decrement(float(hold.wire));
        self.gauges[1].decrement(float(hold.counted));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Hold {
    /// These bytes, counted as this says until the last of them is gone, wherever they wait.
    #[must_use]
    pub fn around(self, bytes: Bytes) -> Bytes {
        if self.budget.is_none() || bytes.is_empty() {
            return bytes;
        }
        Bytes::from_owner(Counted { bytes, hold: self })
    }

    /// The same, where this goes around other bytes too.
    #[must_use]
    pub fn around_some(self: &Arc<Self>, bytes: Bytes) -> Bytes {
        let hold = Arc::clone(self);
        Bytes::from_owner(Counted { bytes, hold })
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if let Some(budget) = self.budget.take() {
            budget.give_back(self);
        }
    }
}

impl Account<'_> {
    /// Counts so many bytes more.
    ///
    /// # Errors
    /// When there is no room.
    pub fn add(&mut self, bytes: usize) -> Result<(), Lack> {
        let asked = self.hold.asked + bytes;
        let counted = asked.saturating_sub(FREE_BYTES);
        if counted > self.hold.counted {
            let more = counted - self.hold.counted;
            self.budget.add(self.hold, self.tenant, more)?;
        }
        self.hold.asked = asked;
        Ok(())
    }
}

impl Gathered {
    /// Nothing yet, and `most` bytes in the end.
    #[must_use]
    pub fn new(most: usize) -> Self {
        let bytes = BytesMut::new();
        Self { bytes, most }
    }

    /// How much it is so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether it is nothing so far.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Adds what came.
    ///
    /// # Errors
    /// When there is no room for it.
    pub fn push(&mut self, chunk: &[u8], account: &mut Account<'_>) -> Result<(), Lack> {
        let (wanted, has) = (self.bytes.len() + chunk.len(), self.bytes.capacity());
        if wanted > has {
            // Twice as much each time, so that bytes are copied but a few times.
            let room = (2 * has).max(FREE_BYTES / 2).min(self.most).max(wanted);
            let is_long = has <= FREE_BYTES / 2 && room > FREE_BYTES / 2;
            let reads = if is_long {
                READ_BYTES.min(self.most)
            } else {
                0
            };
            account.add(room - has + reads)?;
            let mut larger = BytesMut::with_capacity(room);
            larger.extend_from_slice(&self.bytes);
            self.bytes = larger;
        }
        self.bytes.extend_from_slice(chunk);
        Ok(())
    }

    /// All of it.
    #[must_use]
    pub fn freeze(self) -> Bytes {
        self.bytes.freeze()
    }
}

impl Lack {
    /// What the client is told.
    #[must_use]
    pub fn problem(self) -> Problem {
        if self == Self::Share {
            let detail = "Your tenant's requests hold as many bytes as they may.";
            let problem = Problem::new(Code::RateLimitExceeded, detail);
            return problem.with_retry_after(RETRY_AFTER_SECONDS);
        }
        unavailable("Requests hold as many bytes as they may.")
    }
}

impl<H> AsRef<[u8]> for Counted<H> {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[expect(clippy::cast_precision_loss, reason = "a gauge")]
fn float(bytes: usize) -> f64 {
    bytes as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1_024 * 1_024;

    fn tenant(second: i64) -> TenantId {
        TenantId::generate(jiff::Timestamp::from_second(second).unwrap())
    }

    fn held(budget: &Budget) -> (usize, usize, usize) {
        let held = budget.lock();
        (held.wire, held.tenants, held.by_tenant.len())
    }

    #[test]
    fn neither_strangers_nor_one_tenant_take_the_room_of_others() {
        let budget = Arc::new(Budget::new(16 * MIB));
        let mut holds: [Hold; 5] = Default::default();
        let [wire, greedy, second, third, small] = &mut holds;
        budget.add_wire(wire, 8 * MIB).unwrap();
        assert_eq!(budget.add_wire(wire, 1), Err(Lack::Wire));
        let tenants = [0, 1, 2].map(tenant);
        let add = |hold: &mut Hold, number: usize, bytes| {
            let (budget, tenant) = (&budget, tenants[number]);
            Account {
                budget,
                tenant,
                hold,
            }
            .add(bytes)
        };
        add(greedy, 0, 4 * MIB).unwrap();
        assert_eq!(add(greedy, 0, MIB), Err(Lack::Share));
        add(second, 1, 4 * MIB).unwrap();
        assert_eq!(add(third, 2, MIB), Err(Lack::Tenants));
        // Who holds little needs no room.
        add(small, 2, FREE_BYTES).unwrap();
        assert!(small.budget.is_none());
        assert_eq!(held(&budget), (8 * MIB, 8 * MIB - 2 * FREE_BYTES, 2));
        drop(holds);
        assert_eq!(held(&budget), (0, 0, 0));
    }

    #[test]
    fn what_comes_bit_by_bit_is_counted_as_it_comes() {
        let budget = Arc::new(Budget::new(16 * MIB));
        let mut hold = Hold::default();
        let mut account = Account {
            budget: &budget,
            tenant: tenant(1),
            hold: &mut hold,
        };
        let mut body = Gathered::new(MIB);
        for _ in 0..MIB / 1_000 {
            body.push(&[b'a'; 1_000], &mut account).unwrap();
            let (_, counted, _) = held(&budget);
            assert!(counted + FREE_BYTES >= body.len());
            assert!(counted <= 2 * body.len() + READ_BYTES);
        }
        let body = body.freeze();
        assert!(body.len() > MIB - 1_000);
        // Wherever the bytes wait, they count.
        let mut waiting = hold.around(body);
        let last = waiting.split_off(waiting.len() - 1);
        drop(waiting);
        assert!(held(&budget).1 > 0);
        drop(last);
        assert_eq!(held(&budget), (0, 0, 0));
    }
}
