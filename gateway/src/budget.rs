//! Bytes that requests hold, bounded in sum: bodies as they come, answers as they are captured or
//! passed on, long heads, and what HTTP/2 keeps for its connections.
//!
//! Half of the sum is for the wire, which is whatever is held before anybody is known; half is for
//! tenants. Of each half one address, or one tenant, may hold half, so that it cannot take the room
//! of others; trusted proxies are no address of anybody's. What every request holds is not
//! counted: the number of connections bounds it.

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

/// How much may be held, by half.
#[derive(Debug)]
pub struct Budget {
    half_max: usize,
    one_max: usize,
    /// Of the wire, and of tenants.
    halves: Mutex<[Half; 2]>,
    gauges: [Gauge; 2],
    refused: [Counter; 4],
}

/// What is held of one half.
#[derive(Debug, Default)]
struct Half {
    sum: usize,
    /// By who holds it, where that is anyone.
    by: HashMap<u128, usize>,
}

/// What one request, or a connection, holds, until this is dropped.
#[derive(Debug, Default)]
pub struct Hold {
    budget: Option<Arc<Budget>>,
    /// Of each half.
    parts: [Part; 2],
    /// What was asked for of the tenants' half, of which all but [`FREE_BYTES`] is counted.
    asked: usize,
}

#[derive(Clone, Copy, Debug, Default)]
struct Part {
    whose: Option<u128>,
    bytes: usize,
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
    /// Not for this address, which holds its share.
    #[error("no room in the address's share")]
    Address,
    /// Not for any tenant.
    #[error("no room for tenants")]
    Tenants,
    /// Not for this tenant, who holds its share.
    #[error("no room in the tenant's share")]
    Tenant,
}

/// The halves.
const WIRE: usize = 0;
const TENANTS: usize = 1;

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
            half_max: max / 2,
            one_max: max / 4,
            halves: Mutex::default(),
            gauges: ["wire", "tenants"].map(|of| gauge!("gateway_held_bytes", "of" => of)),
            refused: ["wire", "address", "tenants", "tenant"].map(refused),
        }
    }

    /// Has `hold` hold so many bytes more of the wire's half, for the address that `source` is;
    /// `None` is a trusted proxy.
    ///
    /// # Errors
    /// When there is no room.
    pub fn add_wire(
        self: &Arc<Self>,
        hold: &mut Hold,
        source: Option<u64>,
        bytes: usize,
    ) -> Result<(), Lack> {
        self.add(hold, WIRE, source.map(u128::from), bytes)
    }

    fn add(
        self: &Arc<Self>,
        hold: &mut Hold,
        half: usize,
        whose: Option<u128>,
        more: usize,
    ) -> Result<(), Lack> {
        let mut halves = self.lock();
        let Half { sum, by } = &mut halves[half];
        let lacks = |lack: Lack| {
            self.refused[lack as usize].increment(1);
            Err(lack)
        };
        if *sum + more > self.half_max {
            return lacks([Lack::Wire, Lack::Tenants][half]);
        }
        if let Some(whose) = whose {
            let own = by.get(&whose).copied().unwrap_or(0) + more;
            if own > self.one_max {
                return lacks([Lack::Address, Lack::Tenant][half]);
            }
            by.insert(whose, own);
        }
        *sum += more;
        drop(halves);
        self.gauges[half].increment(float(more));
        let part = &mut hold.parts[half];
        *part = Part {
            whose,
            bytes: part.bytes + more,
        };
        hold.budget.get_or_insert_with(|| Arc::clone(self));
        Ok(())
    }

    fn give_back(&self, parts: [Part; 2]) {
        let mut halves = self.lock();
        for (half, part) in halves.iter_mut().zip(parts) {
            half.sum -= part.bytes;
            let Some(whose) = part.whose else { continue };
            if let Some(own) = half.by.get_mut(&whose) {
                *own -= part.bytes;
                if *own == 0 {
                    half.by.remove(&whose);
                }
            }
        }
        drop(halves);
        for (gauge, part) in self.gauges.iter().zip(parts) {
            gauge.decrement(float(part.bytes));
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, [Half; 2]> {
        self.halves.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Hold {
    /// As much more is free as a request's own part is: what was acted upon must not fail for want
    /// of room for a short answer.
    pub fn spare(&mut self) {
        self.asked = self.asked.saturating_sub(FREE_BYTES);
    }

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
            budget.give_back(self.parts);
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
        let before = self.hold.parts[TENANTS].bytes;
        if counted > before {
            let tenant = Some(self.tenant.uuid().as_u128());
            self.budget
                .add(self.hold, TENANTS, tenant, counted - before)?;
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
        let detail = match self {
            Self::Wire | Self::Tenants => {
                return unavailable("Requests hold as many bytes as they may.");
            }
            Self::Address => "Requests from your address hold as many bytes as they may.",
            Self::Tenant => "Your tenant's requests hold as many bytes as they may.",
        };
        Problem::new(Code::RateLimitExceeded, detail).with_retry_after(RETRY_AFTER_SECONDS)
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

    /// What is held of the wire and by tenants, and by how many in all.
    fn held(budget: &Budget) -> (usize, usize, usize) {
        let halves = budget.lock();
        let [wire, tenants] = &*halves;
        (wire.sum, tenants.sum, wire.by.len() + tenants.by.len())
    }

    #[test]
    fn neither_one_address_nor_one_tenant_takes_the_room_of_others() {
        let budget = Arc::new(Budget::new(16 * MIB));
        let mut holds: [Hold; 7] = Default::default();
        let [one, other, proxy, greedy, second, third, small] = &mut holds;
        budget.add_wire(one, Some(1), 4 * MIB).unwrap();
        assert_eq!(budget.add_wire(one, Some(1), 1), Err(Lack::Address));
        budget.add_wire(other, Some(2), MIB).unwrap();
        budget.add_wire(proxy, None, 3 * MIB).unwrap();
        assert_eq!(budget.add_wire(proxy, None, 1), Err(Lack::Wire));
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
        assert_eq!(add(greedy, 0, MIB), Err(Lack::Tenant));
        add(second, 1, 4 * MIB).unwrap();
        assert_eq!(add(third, 2, MIB), Err(Lack::Tenants));
        // Who holds little needs no room.
        add(small, 2, FREE_BYTES).unwrap();
        assert!(small.budget.is_none());
        assert_eq!(held(&budget), (8 * MIB, 8 * MIB - 2 * FREE_BYTES, 4));
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
