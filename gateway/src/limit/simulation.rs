//! Up to 16 gateways over one shared bucket, as a property: clocks that disagree and drift, trips
//! that take their time, crashes, flushes. However it goes, no window holds more than the policy
//! and the outstanding leases; and where nothing breaks, next to nothing is wasted.

use std::collections::BinaryHeap;

use proptest::prelude::*;

use crate::{
    limit::{
        bucket::{Bucket, POLICIES, Policy, Taken, take},
        lease::{Decision, LEASE_PART, Outcome, Tokens},
    },
    sight::PlanLabel,
    snapshot::Plan,
};

/// What happens next.
#[derive(Clone, Copy, Debug)]
enum Event {
    /// A request comes to the gateway; the trip it may need takes so long.
    Request { gateway: usize, trip_ms: u64 },
    /// The gateway is killed and started again.
    Crash { gateway: usize },
    /// Redis forgets everything.
    Flush,
}

/// One gateway.
struct Gateway {
    tokens: Tokens,
    /// Its clock: milliseconds ahead, and parts per million too fast.
    ahead_ms: u64,
    ppm: u64,
    /// Crashes so far: what was asked before the last one, nobody waits for.
    life: u32,
    /// Whether somebody asks for everyone.
    asking: bool,
    /// Requests that wait for the answer.
    waiting: u32,
}

/// An answer of Redis on its way: ordered by when it arrives, the first on top.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Arrival {
    at: std::cmp::Reverse<u64>,
    gateway: usize,
    life: u32,
    asked_ms: u64,
    /// When Redis decided, and for how many who waited.
    decided: (u64, u32),
    trip_ms: u64,
    granted: u32,
    retry_ms: u64,
    violated: [bool; POLICIES],
    remaining: [u32; POLICIES],
}

struct World {
    policies: [Policy; POLICIES],
    shared: [Bucket; POLICIES],
    gateways: Vec<Gateway>,
    on_their_way: BinaryHeap<Arrival>,
    now: u64,
    admitted: Vec<u64>,
}

impl Gateway {
    fn clock(&self, now: u64) -> u64 {
        self.ahead_ms + now + now * self.ppm / 1_000_000
    }
}

impl World {
    fn new(policies: [Policy; POLICIES], clocks: &[(u64, u64)]) -> Self {
        let count = u32::try_from(clocks.len()).unwrap();
        let gateway = |(ahead_ms, ppm): &(u64, u64)| Gateway {
            tokens: Tokens::new(policies, count, *ahead_ms),
            ahead_ms: *ahead_ms,
            ppm: *ppm,
            life: 0,
            asking: false,
            waiting: 0,
        };
        Self {
            policies,
            shared: policies.map(|policy| Bucket::full(&policy, 0)),
            gateways: clocks.iter().map(gateway).collect(),
            on_their_way: BinaryHeap::new(),
            now: 0,
            admitted: Vec::new(),
        }
    }

    fn pass(&mut self, milliseconds: u64) {
        let until = self.now + milliseconds;
        while self
            .on_their_way
            .peek()
            .is_some_and(|first| first.at.0 <= until)
        {
            let arrival = self.on_their_way.pop().unwrap();
            self.now = self.now.max(arrival.at.0);
            self.arrive(&arrival);
        }
        self.now = until;
    }

    fn arrive(&mut self, arrival: &Arrival) {
        let gateway = &mut self.gateways[arrival.gateway];
        if gateway.life != arrival.life {
            return;
        }
        gateway.asking = false;
        let taken = Taken {
            granted: arrival.granted,
            retry_ms: arrival.retry_ms,
            violated: arrival.violated,
            remaining: arrival.remaining,
            at_ms: arrival.decided.0,
        };
        if let Outcome::Admit(_) = gateway.tokens.granted(&taken, arrival.asked_ms) {
            self.admitted.push(arrival.decided.0);
        }
        self.serve_waiting(arrival.gateway, arrival.decided, arrival.trip_ms);
    }

    /// Whoever waited spends what came, or asks for all who are left.
    fn serve_waiting(&mut self, index: usize, decided: (u64, u32), trip_ms: u64) {
        let (at, mut meant) = decided;
        let gateway = &mut self.gateways[index];
        let clock = gateway.clock(self.now);
        while gateway.waiting > 0 {
            match gateway.tokens.spend(clock) {
                Decision::Known(Outcome::Admit(_)) => {
                    // Who was there when Redis decided was admitted then.
                    self.admitted.push(if meant > 0 { at } else { self.now });
                    meant = meant.saturating_sub(1);
                }
                Decision::Known(Outcome::Deny(..)) => {}
                Decision::Ask(want) => {
                    let want = want.max(gateway.waiting);
                    gateway.waiting -= 1;
                    return self.ask(index, want, trip_ms);
                }
            }
            gateway.waiting -= 1;
        }
    }

    fn happen(&mut self, event: Event) {
        let (now, count) = (self.now, self.gateways.len());
        match event {
            Event::Flush => self.shared = [Bucket::empty(now); POLICIES],
            Event::Crash { gateway } => {
                let gateway = &mut self.gateways[gateway % count];
                let fresh = u32::try_from(count).unwrap();
                gateway.tokens = Tokens::new(self.policies, fresh, gateway.clock(now));
                gateway.life += 1;
                gateway.asking = false;
                gateway.waiting = 0;
            }
            Event::Request { gateway, trip_ms } => self.request(gateway % count, trip_ms),
        }
    }

    fn request(&mut self, index: usize, trip_ms: u64) {
        let gateway = &mut self.gateways[index];
        let clock = gateway.clock(self.now);
        match gateway.tokens.decide(clock) {
            Decision::Known(Outcome::Admit(_)) => self.admitted.push(self.now),
            Decision::Known(Outcome::Deny(..)) => {}
            Decision::Ask(_) if gateway.asking => gateway.waiting += 1,
            Decision::Ask(want) => self.ask(index, want, trip_ms),
        }
    }

    fn ask(&mut self, index: usize, want: u32, trip_ms: u64) {
        let gateway = &mut self.gateways[index];
        gateway.asking = true;
        let taken = take(&mut self.shared, &self.policies, self.now, want);
        self.on_their_way.push(Arrival {
            at: std::cmp::Reverse(self.now + trip_ms),
            gateway: index,
            life: gateway.life,
            asked_ms: gateway.clock(self.now),
            decided: (self.now, gateway.waiting),
            trip_ms,
            granted: taken.granted,
            retry_ms: taken.retry_ms,
            violated: taken.violated,
            remaining: taken.remaining,
        });
    }

    /// No window holds more than the policy and what was leased when it began.
    fn within_policy(&mut self) -> Result<(), TestCaseError> {
        self.admitted.sort_unstable();
        let gateways = f64::from(u32::try_from(self.gateways.len()).unwrap());
        for policy in &self.policies {
            let leases = (policy.capacity * LEASE_PART).max(gateways);
            let mut lowest = f64::INFINITY;
            for (index, at) in self.admitted.iter().enumerate() {
                // The worst window that ends here begins where this was lowest.
                #[expect(clippy::cast_precision_loss, reason = "small")]
                let (index, earned) = (index as f64, *at as f64 * policy.per_ms);
                lowest = lowest.min(index - earned);
                let excess = index + 1.0 - earned - lowest - policy.capacity;
                prop_assert!(
                    excess <= leases + 1e-6,
                    "{excess} of {leases}: {}",
                    policy.name
                );
            }
        }
        Ok(())
    }
}

/// The policies of a plan with these limits.
pub(super) fn policies(per_minute: u32, burst: u32, per_hour: u32) -> [Policy; POLICIES] {
    Policy::of(&Plan {
        name: "p".to_owned(),
        per_minute,
        burst,
        per_hour,
        quota: None,
        active_jobs: 1,
        priority: 5,
        label: PlanLabel::default(),
    })
}

/// Up to 16 clocks, up to an hour ahead and up to a thousandth too fast.
fn clocks() -> impl Strategy<Value = Vec<(u64, u64)>> {
    prop::collection::vec((0u64..3_600_000, 0u64..1_000), 1..=16)
}

fn event() -> impl Strategy<Value = Event> {
    let request =
        (0usize..16, 0u64..60).prop_map(|(gateway, trip_ms)| Event::Request { gateway, trip_ms });
    prop_oneof![
        96 => request,
        3 => (0usize..16).prop_map(|gateway| Event::Crash { gateway }),
        1 => Just(Event::Flush),
    ]
}

proptest! {
    #[test]
    fn no_window_holds_more_than_policy_and_outstanding_leases(
        per_minute in 60u32..200_000,
        burst in 1u32..5_000,
        per_hour in 60u32..10_000_000,
        clocks in clocks(),
        steps in prop::collection::vec((0u64..40, 1usize..60, event()), 50..500),
    ) {
        let mut world = World::new(policies(per_minute, burst, per_hour), &clocks);
        for (pause, times, event) in steps {
            world.pass(pause);
            let times = if let Event::Request { .. } = event { times } else { 1 };
            for _ in 0..times {
                world.happen(event);
            }
        }
        world.pass(1_000);
        world.within_policy()?;
    }

    #[test]
    fn under_too_much_load_next_to_nothing_is_wasted(
        per_minute in 600u32..20_000,
        burst in 10u32..500,
        clocks in clocks(),
        trip_ms in 0u64..5,
    ) {
        let policies = policies(per_minute, burst, 100_000_000);
        let mut world = World::new(policies, &clocks);
        let milliseconds = 20_000;
        for _ in 0..milliseconds {
            world.pass(1);
            for gateway in 0..clocks.len() {
                world.happen(Event::Request { gateway, trip_ms });
            }
        }
        world.within_policy()?;
        let policy = policies[0].capacity + policies[0].per_ms * f64::from(milliseconds);
        #[expect(clippy::cast_precision_loss, reason = "small")]
        let part = world.admitted.len() as f64 / policy;
        prop_assert!(part >= 0.97, "{part} of {policy}");
    }
}
