//! One version of an upstream: its addresses, which of them are well, and whose turn it is.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU8, AtomicU32, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use http::StatusCode;
use metrics::{Counter, counter, gauge};
use pingora::{protocols::Stream, upstreams::peer::HttpPeer};

use super::{
    breaker::{Breaker, Cause},
    pool::Pool,
};
use crate::config;

/// One version of an upstream.
#[derive(Debug)]
pub struct Version {
    /// Its name in metrics.
    pub name: String,
    /// Its `host:port`.
    pub host: String,
    upstream: &'static str,
    targets: ArcSwap<Vec<Arc<Target>>>,
    turn: AtomicUsize,
    outcomes: Outcomes,
}

/// One address.
#[derive(Debug)]
pub struct Target {
    /// Where.
    pub address: SocketAddr,
    peer: HttpPeer,
    pool: Pool,
    /// A copy of what the breaker lets through, for requests to read.
    gate: AtomicU8,
    /// Answers since the breaker last counted them.
    answers: AtomicU32,
    breaker: Mutex<Breaker>,
    started: Instant,
}

/// An address that was picked for a request, and what became of it.
#[derive(Debug)]
pub struct Pick {
    version: Arc<Version>,
    target: Arc<Target>,
    /// Whether the request is the one on trial, until its outcome is known.
    trial: bool,
    noted: bool,
}

#[derive(Debug)]
struct Outcomes {
    answered: Counter,
    sick: Counter,
    unreachable: Counter,
}

/// Requests may go there.
const IN: u8 = 0;
/// Requests may go there that know of a failure to connect.
const DOUBTED: u8 = 1;
/// One request may, and others only if there is nothing better.
const TRIAL: u8 = 2;
/// The one has.
const TRIED: u8 = 3;
/// Only if there is nothing better.
const SICK: u8 = 4;
/// None may.
const OUT: u8 = 5;
/// One request may, and no other: who could not be reached is not to be stormed when it is back.
const PROBE: u8 = 6;
/// It has.
const PROBED: u8 = 7;

impl Version {
    /// A version at `host`, whose addresses are not known yet unless `host` is one.
    #[must_use]
    pub fn new(upstream: &'static str, name: &str, host: &str) -> Self {
        let of = |outcome: &'static str| {
            let version = name.to_owned();
            counter!("gateway_upstream_requests_total",
                "upstream" => upstream, "version" => version, "outcome" => outcome)
        };
        let this = Self {
            name: name.to_owned(),
            host: host.to_owned(),
            upstream,
            targets: ArcSwap::default(),
            turn: AtomicUsize::new(0),
            outcomes: Outcomes {
                answered: of("answered"),
                sick: of("sick"),
                unreachable: of("unreachable"),
            },
        };
        if let Ok(address) = host.parse() {
            this.found(&[address]);
        }
        this
    }

    /// These are its addresses now; those that were known stay as they are.
    pub fn found(&self, addresses: &[SocketAddr]) {
        let known = self.targets.load();
        let same = known.len() == addresses.len()
            && known
                .iter()
                .zip(addresses)
                .all(|(target, found)| target.address == *found);
        if same {
            return;
        }
        let target = |address: &SocketAddr| {
            let known = known.iter().find(|target| target.address == *address);
            known.map_or_else(|| Arc::new(Target::new(*address)), Arc::clone)
        };
        let targets = addresses.iter().map(target).collect();
        self.targets.store(Arc::new(targets));
    }

    /// Its addresses.
    #[must_use]
    pub fn targets(&self) -> Arc<Vec<Arc<Target>>> {
        self.targets.load_full()
    }

    /// The next address that is well, and not the one that `failed`.
    #[must_use]
    pub fn pick(self: &Arc<Self>, failed: Option<&Pick>) -> Option<Pick> {
        let failed = failed.map(|pick| pick.target.address);
        self.next(|target| {
            let other = failed != Some(target.address);
            other.then(|| target.admit()).flatten()
        })
    }

    /// The next address that answers, if only with failures: better than none.
    #[must_use]
    pub fn pick_sick(self: &Arc<Self>) -> Option<Pick> {
        let sick = |target: &Target| {
            let gate = target.gate.load(Ordering::Relaxed);
            matches!(gate, SICK | TRIED).then_some(false)
        };
        self.next(sick)
    }

    fn next(self: &Arc<Self>, admit: impl Fn(&Target) -> Option<bool>) -> Option<Pick> {
        let targets = self.targets.load();
        let first = match targets.len() {
            0 => return None,
            1 => 0,
            count => self.turn.fetch_add(1, Ordering::Relaxed) % count,
        };
        let (before, after) = targets.split_at(first);
        let (target, trial) = after
            .iter()
            .chain(before)
            .find_map(|target| Some((target, admit(target)?)))?;
        Some(Pick {
            version: Arc::clone(self),
            target: Arc::clone(target),
            trial,
            noted: false,
        })
    }

    /// Lets time pass for its addresses, and shows how many are well.
    pub fn tick(&self) {
        let targets = self.targets.load();
        for target in targets.iter() {
            target.tick();
        }
        let well = targets.iter().filter(|target| target.is_well()).count();
        let version = self.name.clone();
        #[expect(clippy::cast_precision_loss, reason = "a gauge")]
        for (state, count) in [("in", well), ("out", targets.len() - well)] {
            gauge!("gateway_upstream_addresses",
                "upstream" => self.upstream, "version" => version.clone(), "state" => state)
            .set(count as f64);
        }
    }
}

impl Target {
    fn new(address: SocketAddr) -> Self {
        let mut peer = HttpPeer::new(address, false, String::new());
        peer.options.connection_timeout = Some(config::CONNECT_DEADLINE);
        peer.options.total_connection_timeout = Some(config::CONNECT_DEADLINE);
        Self {
            address,
            peer,
            pool: Pool::default(),
            gate: AtomicU8::new(IN),
            answers: AtomicU32::new(0),
            breaker: Mutex::default(),
            started: Instant::now(),
        }
    }

    /// Whether a request may go there, and then whether on trial.
    fn admit(&self) -> Option<bool> {
        let first = |from, to| {
            let (relaxed, gate) = (Ordering::Relaxed, &self.gate);
            let first = gate.compare_exchange(from, to, relaxed, relaxed);
            first.is_ok().then_some(true)
        };
        match self.gate.load(Ordering::Relaxed) {
            IN | DOUBTED => Some(false),
            TRIAL => first(TRIAL, TRIED),
            PROBE => first(PROBE, PROBED),
            _ => None,
        }
    }

    fn is_well(&self) -> bool {
        self.gate.load(Ordering::Relaxed) <= DOUBTED
    }

    /// What a check found.
    pub fn checked(&self, reachable: bool) {
        if reachable {
            self.turn(|breaker, _| breaker.reachable());
        } else {
            self.turn(Breaker::unreachable);
        }
    }

    fn tick(&self) {
        self.pool.tick();
        self.turn(Breaker::wait);
    }

    /// Makes a move of the breaker, after what was answered before it.
    fn turn(&self, turn: impl FnOnce(Breaker, Duration) -> Breaker) {
        let now = self.started.elapsed();
        let mut breaker = self.breaker.lock().unwrap_or_else(PoisonError::into_inner);
        let before = *breaker;
        // A half-open one is closed by its trial alone.
        let answers = self.answers.swap(0, Ordering::Relaxed);
        let counted = match before {
            Breaker::Closed(_) => before.answered(answers, now),
            other => other,
        };
        let after = turn(counted, now);
        *breaker = after;
        let stays = matches!(
            (before, after),
            (Breaker::HalfOpen(_), Breaker::HalfOpen(_))
        );
        if !stays {
            self.gate.store(gate(&after), Ordering::Relaxed);
        }
    }
}

fn gate(breaker: &Breaker) -> u8 {
    match (breaker, breaker.cause()) {
        (Breaker::HalfOpen(_), Some(Cause::Sick)) => TRIAL,
        (Breaker::HalfOpen(_), _) => PROBE,
        (_, Some(Cause::Sick)) => SICK,
        (_, Some(Cause::Unreachable)) => OUT,
        _ if breaker.doubts() => DOUBTED,
        _ => IN,
    }
}

impl Pick {
    /// Which version it is of.
    #[must_use]
    pub fn version(&self) -> &Version {
        &self.version
    }

    /// Where to connect to.
    #[must_use]
    pub fn peer(&self) -> &HttpPeer {
        &self.target.peer
    }

    /// A connection that is there already.
    pub(super) fn kept(&self) -> Option<Stream> {
        self.target.pool.take()
    }

    /// Keeps a connection for the next request.
    pub(super) fn keep(&self, stream: Stream) {
        self.target.pool.put(stream);
    }

    /// An answer's header arrived. What may be one tenant's doing, or is a refusal in good order,
    /// is no failure: 503 says when to come back.
    pub fn answered(&mut self, status: StatusCode) {
        let orderly = matches!(
            status,
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::NOT_IMPLEMENTED
        );
        if status.is_server_error() && !orderly {
            return self.sick();
        }
        if std::mem::replace(&mut self.noted, true) {
            return;
        }
        self.version.outcomes.answered.increment(1);
        let target = &self.target;
        if self.trial || target.gate.load(Ordering::Relaxed) == DOUBTED {
            target.turn(|breaker, now| breaker.answered(1, now));
        } else {
            target.answers.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// It answered with a failure, or broke off, or was too slow.
    pub fn sick(&mut self) {
        if !std::mem::replace(&mut self.noted, true) {
            self.version.outcomes.sick.increment(1);
            self.target.turn(Breaker::sick);
        }
    }

    /// It could not be reached, and nothing was sent.
    pub fn unreachable(&mut self) {
        if !std::mem::replace(&mut self.noted, true) {
            self.version.outcomes.unreachable.increment(1);
            self.target.turn(Breaker::unreachable);
        }
    }
}

impl Drop for Pick {
    fn drop(&mut self) {
        // Nobody waited for the outcome of the trial: the next request has it.
        if self.trial && !self.noted {
            let (relaxed, gate) = (Ordering::Relaxed, &self.target.gate);
            for (from, to) in [(TRIED, TRIAL), (PROBED, PROBE)] {
                gate.compare_exchange(from, to, relaxed, relaxed).ok();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::breaker::{ANSWERS_MIN, UNREACHABLE_MAX};

    fn version(count: u16) -> Arc<Version> {
        let version = Version::new("jobs", "stable", "jobs:80");
        let addresses: Vec<SocketAddr> = (1..=count).map(|n| ([127, 0, 0, 1], n).into()).collect();
        version.found(&addresses);
        Arc::new(version)
    }

    fn port(pick: &Pick) -> u16 {
        pick.target.address.port()
    }

    #[test]
    fn addresses_take_turns_and_the_unreachable_are_left_out() {
        let version = version(3);
        let ports: Vec<u16> = (0..6).map(|_| port(&version.pick(None).unwrap())).collect();
        assert_eq!(ports, [1, 2, 3, 1, 2, 3]);
        for _ in 0..UNREACHABLE_MAX {
            for _ in 0..3 {
                let mut pick = version.pick(None).unwrap();
                if port(&pick) == 2 {
                    pick.unreachable();
                }
            }
        }
        let found = (0..30).any(|_| port(&version.pick(None).unwrap()) == 2);
        assert!(!found);
        // What is still there keeps its state when the name's addresses change.
        version.found(&[([127, 0, 0, 1], 2).into()]);
        assert!(version.pick(None).is_none() && version.pick_sick().is_none());
        version.targets()[0].checked(true);
        assert_eq!(port(&version.pick(None).unwrap()), 2);
    }

    #[test]
    fn a_sick_address_is_the_last_resort_and_comes_back_by_one_trial_at_a_time() {
        let version = version(1);
        for _ in 0..ANSWERS_MIN {
            version
                .pick(None)
                .unwrap()
                .answered(StatusCode::INTERNAL_SERVER_ERROR);
        }
        assert!(version.pick(None).is_none());
        assert!(version.pick_sick().is_some());
        let target = Arc::clone(&version.targets()[0]);
        target.turn(|breaker, now| breaker.wait(now + super::super::breaker::PAUSE_MAX));
        let trial = version.pick(None).unwrap();
        assert!(version.pick(None).is_none(), "one at a time");
        drop(trial);
        let mut trial = version.pick(None).unwrap();
        trial.answered(StatusCode::OK);
        assert!(version.pick(None).is_some() && version.pick(None).is_some());
    }

    #[test]
    fn an_address_that_could_not_be_reached_is_tried_by_one_and_no_other() {
        let version = version(1);
        for _ in 0..UNREACHABLE_MAX {
            version.pick(None).unwrap().unreachable();
        }
        let target = Arc::clone(&version.targets()[0]);
        let none = || version.pick(None).is_none() && version.pick_sick().is_none();
        assert!(none());
        target.turn(|breaker, now| breaker.wait(now + super::super::breaker::PAUSE_MAX));
        let trial = version.pick(None).unwrap();
        assert!(none(), "one at a time");
        drop(trial);
        let mut trial = version.pick(None).unwrap();
        assert!(none());
        trial.answered(StatusCode::OK);
        assert!(version.pick(None).is_some() && version.pick(None).is_some());
    }

    #[test]
    fn refusals_in_good_order_are_no_failures() {
        let version = version(1);
        for _ in 0..10 * ANSWERS_MIN {
            let mut pick = version.pick(None).unwrap();
            pick.answered(StatusCode::SERVICE_UNAVAILABLE);
        }
        version.tick();
        assert!(version.pick(None).is_some());
    }
}
