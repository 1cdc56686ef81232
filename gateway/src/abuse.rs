//! Who does wrong again and again: addresses by what is refused of them, credentials by what they
//! ask for in vain. They wait before anything of theirs is looked at.
//!
//! An address may be many people's. So a credential that was accepted from an address before is
//! heard whatever others do there, and answers for its own misses only; who is new at an address
//! that is over its budget waits with it. IPv6 addresses count by /64. A trusted proxy that
//! forwards no address is nobody in particular and is never held up. Memory is fixed: a table of
//! who did wrong lately and one of accepted credentials, the oldest of which make room.

use std::{
    hash::{BuildHasher as _, RandomState},
    net::IpAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use contracts::problem::{Code, Problem};
use http::{HeaderMap, StatusCode, header};
use ipnet::IpNet;
use metrics::Counter;
use quick_cache::sync::Cache;

use crate::{
    abuse::standing::{Deed, Limits, Standing},
    auth::API_KEY_HEADER,
    ctx::Ctx,
};

pub mod standing;

/// Most addresses and credentials whose standing is known.
const STANDINGS_MAX: usize = 65_536;
/// Places for credentials that were accepted; a power of two.
const ACCEPTED_MAX: usize = 16_384;
/// The end of a credential is what tells it from others: a signature, or a secret's checksum.
const TAIL_BYTES: usize = 40;

/// Remembers who does wrong.
#[derive(Debug)]
pub struct Abuse {
    limits: Limits,
    trusted: Vec<IpNet>,
    seed: RandomState,
    standings: Cache<u64, Arc<Mutex<Standing>>>,
    accepted: Box<[AtomicU64]>,
    started: Instant,
    held_up: Counter,
}

impl Abuse {
    /// Nobody did wrong yet.
    #[must_use]
    pub fn new(limits: Limits, trusted: Vec<IpNet>) -> Self {
        Self {
            limits,
            trusted,
            seed: RandomState::new(),
            standings: Cache::new(STANDINGS_MAX),
            accepted: (0..ACCEPTED_MAX).map(|_| AtomicU64::new(0)).collect(),
            started: Instant::now(),
            held_up: metrics::counter!("gateway_abuse_refused_total"),
        }
    }

    /// Whether the request's credential is looked at. For addresses that nothing is known about,
    /// which are nearly all, this is one look-up.
    ///
    /// # Errors
    /// The problem that says when to come again.
    pub(crate) fn admit(&self, ctx: &mut Ctx, headers: &HeaderMap) -> Result<(), Problem> {
        let source = self.source(ctx.address);
        let Some(address) = source.and_then(|source| self.standings.get(&source)) else {
            return Ok(());
        };
        ctx.watched = true;
        let credential = self.credential(source, headers);
        let wait = match credential {
            Some(credential) if self.is_accepted(credential) => {
                let standing = self.standings.get(&credential);
                standing.and_then(|standing| self.wait_ms(&standing))
            }
            _ => self.wait_ms(&address),
        };
        let Some(wait) = wait else { return Ok(()) };
        self.held_up.increment(1);
        let seconds = wait.div_ceil(1_000);
        let detail = format!("Too much of late was refused. Try again in {seconds} s.");
        Err(Problem::new(Code::RateLimitExceeded, detail).with_retry_after(seconds))
    }

    /// Notes how a request ended.
    pub(crate) fn note(&self, ctx: &Ctx, headers: &HeaderMap) {
        let Some(source) = self.source(ctx.address) else {
            return;
        };
        let status = StatusCode::from_u16(ctx.status).unwrap_or_default();
        if status == StatusCode::UNAUTHORIZED {
            // Whatever was accepted before is not any more, or somebody shows only its end.
            if let Some(credential) = self.credential(Some(source), headers) {
                self.forget(credential);
            }
            self.deed(source, Some(Deed::Failure));
            return;
        }
        if ctx.principal.is_none() {
            let deed = match status {
                StatusCode::NOT_FOUND | StatusCode::FORBIDDEN => Deed::Miss,
                StatusCode::BAD_REQUEST => Deed::Malformed,
                _ => return,
            };
            self.deed(source, Some(deed));
            return;
        }
        let Some(credential) = self.credential(Some(source), headers) else {
            return;
        };
        self.accept(credential);
        match status {
            StatusCode::NOT_FOUND | StatusCode::FORBIDDEN => {
                self.deed(credential, Some(Deed::KnownMiss));
                // From now on requests of the address are looked at twice.
                self.deed(source, None);
            }
            good if good.is_success() && ctx.watched => {
                if let Some(standing) = self.standings.get(&credential) {
                    self.with(&standing, |standing, now| {
                        standing.note(Deed::Good, &self.limits, now);
                    });
                }
            }
            _ => {}
        }
    }

    /// Notes what was no request at all.
    pub(crate) fn malformed(&self, address: IpAddr) {
        if let Some(source) = self.source(address) {
            self.deed(source, Some(Deed::Malformed));
        }
    }

    fn deed(&self, who: u64, deed: Option<Deed>) {
        let new = || {
            let standing = Standing::new(self.now_ms());
            Ok::<_, std::convert::Infallible>(Arc::new(Mutex::new(standing)))
        };
        let Ok(standing) = self.standings.get_or_insert_with(&who, new);
        if let Some(deed) = deed {
            self.with(&standing, |standing, now| {
                standing.note(deed, &self.limits, now);
            });
        }
    }

    fn wait_ms(&self, standing: &Mutex<Standing>) -> Option<u64> {
        self.with(standing, |standing, now| {
            standing.wait_ms(&self.limits, now)
        })
    }

    fn with<R>(&self, standing: &Mutex<Standing>, work: impl FnOnce(&mut Standing, u64) -> R) -> R {
        let mut standing = standing.lock().unwrap_or_else(PoisonError::into_inner);
        work(&mut standing, self.now_ms())
    }

    /// Who an address is; `None` for a trusted proxy, which is nobody in particular.
    pub(crate) fn source(&self, address: IpAddr) -> Option<u64> {
        if self
            .trusted
            .iter()
            .any(|network| network.contains(&address))
        {
            return None;
        }
        Some(match address {
            IpAddr::V4(address) => self.seed.hash_one((4, u64::from(u32::from(address)))),
            IpAddr::V6(address) => self.seed.hash_one((6, u128::from(address) >> 64)),
        })
    }

    /// The credential of a request, together with where it comes from.
    fn credential(&self, source: Option<u64>, headers: &HeaderMap) -> Option<u64> {
        let value = headers
            .get(header::AUTHORIZATION)
            .or_else(|| headers.get(API_KEY_HEADER))?
            .as_bytes();
        let tail = &value[value.len().saturating_sub(TAIL_BYTES)..];
        // Zero is an empty place.
        Some(self.seed.hash_one((source, tail)).max(1))
    }

    fn accept(&self, credential: u64) {
        let place = self.place(credential);
        // Mostly it is there: a place that is only read is shared by all cores.
        if place.load(Ordering::Relaxed) != credential {
            place.store(credential, Ordering::Relaxed);
        }
    }

    fn forget(&self, credential: u64) {
        let place = self.place(credential);
        place
            .compare_exchange(credential, 0, Ordering::Relaxed, Ordering::Relaxed)
            .ok();
    }

    fn is_accepted(&self, credential: u64) -> bool {
        self.place(credential).load(Ordering::Relaxed) == credential
    }

    fn place(&self, credential: u64) -> &AtomicU64 {
        let index = usize::try_from(credential % ACCEPTED_MAX as u64).unwrap_or(0);
        &self.accepted[index]
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use ops::clock::Clock;

    use super::*;
    use crate::drain::Drain;

    const LIMITS: Limits = Limits {
        failures: 5,
        misses: 5,
        demerits: 1_000,
    };

    fn abuse() -> Abuse {
        Abuse::new(LIMITS, vec!["10.0.0.0/8".parse().unwrap()])
    }

    fn failed(abuse: &Abuse, address: &str, times: usize) {
        let mut ctx = of(address);
        ctx.status = 401;
        for _ in 0..times {
            abuse.note(&ctx, &HeaderMap::new());
        }
    }

    fn admitted(abuse: &Abuse, address: &str) -> bool {
        abuse.admit(&mut of(address), &HeaderMap::new()).is_ok()
    }

    fn of(address: &str) -> Ctx {
        let mut ctx = Ctx::new(Clock::system().now(), Drain::default().enter());
        ctx.address = address.parse().unwrap();
        ctx
    }

    #[test]
    fn an_address_waits_for_itself_alone_and_ipv6_by_64() {
        let abuse = abuse();
        failed(&abuse, "192.0.2.1", 5);
        assert!(!admitted(&abuse, "192.0.2.1"));
        assert!(admitted(&abuse, "192.0.2.2"));
        for host in 0..5 {
            failed(&abuse, &format!("2001:db8:1:2::{host}"), 1);
        }
        assert!(!admitted(&abuse, "2001:db8:1:2:ffff::1"));
        assert!(admitted(&abuse, "2001:db8:1:3::1"));
        // A trusted proxy that forwards no address is never held up.
        failed(&abuse, "10.0.0.1", 50);
        assert!(admitted(&abuse, "10.0.0.1"));
    }

    #[test]
    fn a_flood_of_addresses_does_not_grow_the_table() {
        let abuse = abuse();
        for number in 0..2 * STANDINGS_MAX {
            let address = IpAddr::from(u32::try_from(number).unwrap().to_be_bytes());
            abuse.malformed(if abuse.source(address).is_some() {
                address
            } else {
                "192.0.2.1".parse().unwrap()
            });
        }
        assert!(abuse.standings.len() <= STANDINGS_MAX);
    }
}
