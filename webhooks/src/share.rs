//! Who gets the free slots of a worker. Endpoints take turns, and so do tenants; nobody gets more
//! than its share, so that those who hang never hold what those who answer need; no I/O.
//!
//! - An endpoint has as many deliveries under way as its [`Health`] allows, over all workers.
//! - Endpoints on probation together hold at most a quarter of the slots.
//! - A tenant holds at most half of the slots, and half of those for probes.
//! - The last quarter of the slots, and of a tenant's half, is kept for other endpoints with none
//!   under way: where many die at once, those that live still get one delivery at a time out.

use std::collections::HashMap;

use jiff::Timestamp;
use uuid::Uuid;

use crate::health::Health;

/// Endpoints on probation may hold one slot in so many.
const PROBES_ONE_IN: usize = 4;
/// A tenant may hold one slot in so many.
const TENANT_ONE_IN: usize = 2;
/// One slot in so many is kept for endpoints with nothing under way.
const KEPT_ONE_IN: usize = 4;

/// An endpoint that deliveries are owed to.
#[derive(Clone, Debug)]
pub struct Owed {
    /// Whose it is.
    pub tenant: Uuid,
    /// What is known of it.
    pub health: Health,
    /// Deliveries to it that are under way, from whichever worker.
    pub under_way: usize,
    /// Those of them that this worker sends.
    pub here: usize,
    /// Its oldest due deliveries that nobody sends, oldest first.
    pub due: Vec<Uuid>,
    /// When the oldest of them fell due.
    pub since: Timestamp,
}

/// A worker's slots.
#[derive(Clone, Copy, Debug)]
pub struct Slots {
    /// How many there are.
    pub all: usize,
    /// How many of them are free.
    pub free: usize,
}

/// A delivery that asks for a slot.
struct Waiting {
    message: Uuid,
    key: Key,
    /// Which of its endpoint's deliveries under way it would be, counted from 1.
    place: usize,
    /// Which of its tenant's.
    turn: usize,
    since: Timestamp,
}

/// Whose slots are counted together: a tenant's probes, or all its others.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    tenant: Uuid,
    probes: bool,
}

struct Rooms {
    slots: Room,
    probes: Room,
    tenants: HashMap<Key, Room>,
}

#[derive(Clone, Copy)]
struct Room {
    size: usize,
    held: usize,
}

/// The deliveries to send now, at most as many as there are free slots.
#[must_use]
pub fn share_out(owed: &[Owed], slots: Slots, now: Timestamp) -> Vec<Uuid> {
    let mut rooms = Rooms::new(owed, slots);
    let mut waiting = waiting(owed, now);
    rooms.give_turns(&mut waiting);
    let taken = waiting.iter().filter(|one| rooms.take(one));
    taken.map(|one| one.message).collect()
}

/// What the endpoints' health lets out, every endpoint's first before anyone's second.
fn waiting(owed: &[Owed], now: Timestamp) -> Vec<Waiting> {
    let mut waiting: Vec<Waiting> = owed
        .iter()
        .flat_map(|endpoint| {
            let share = endpoint.health.in_flight_max(now);
            // Probes wait from when they were allowed: who was probed last comes last.
            let probe_at = endpoint.health.probe_at();
            let since = probe_at.map_or(endpoint.since, |at| at.max(endpoint.since));
            let places = endpoint.under_way + 1..=share;
            places
                .zip(&endpoint.due)
                .map(move |(place, &message)| Waiting {
                    message,
                    key: endpoint.key(),
                    place,
                    turn: 0,
                    since,
                })
        })
        .collect();
    waiting.sort_by_key(|one| (one.place, one.since, one.message));
    waiting
}

impl Owed {
    fn key(&self) -> Key {
        Key {
            tenant: self.tenant,
            probes: self.health.probe_at().is_some(),
        }
    }
}

impl Rooms {
    fn new(owed: &[Owed], Slots { all, free }: Slots) -> Self {
        let mut rooms = Self {
            slots: Room {
                size: all,
                held: all.saturating_sub(free),
            },
            probes: Room::part(all, PROBES_ONE_IN),
            tenants: HashMap::new(),
        };
        for endpoint in owed {
            let key = endpoint.key();
            let of = if key.probes { rooms.probes.size } else { all };
            let part = Room::part(of, TENANT_ONE_IN);
            rooms.tenants.entry(key).or_insert(part).held += endpoint.here;
            if key.probes {
                rooms.probes.held += endpoint.here;
            }
        }
        rooms
    }

    /// Among deliveries of the same place, lets tenants take turns, those who hold least first.
    fn give_turns(&self, waiting: &mut [Waiting]) {
        let mut tenants = self.tenants.clone();
        for one in waiting.iter_mut() {
            if let Some(tenant) = tenants.get_mut(&one.key) {
                tenant.held += 1;
                one.turn = tenant.held;
            }
        }
        waiting.sort_by_key(|one| (one.place, one.turn, one.since, one.message));
    }

    /// Takes a slot for a delivery if everyone whose share it would be has room.
    fn take(&mut self, one: &Waiting) -> bool {
        let Self {
            slots,
            probes,
            tenants,
        } = self;
        let Some(tenant) = tenants.get_mut(&one.key) else {
            return false;
        };
        let admitted = if one.key.probes {
            // What is kept, is kept from probes too, but they need not keep anything themselves.
            slots.admits(false) && probes.admits(true) && tenant.admits(true)
        } else {
            let first = one.place == 1;
            slots.admits(first) && tenant.admits(first)
        };
        if admitted {
            slots.held += 1;
            tenant.held += 1;
            probes.held += usize::from(one.key.probes);
        }
        admitted
    }
}

impl Room {
    /// One in `parts` of `size`; where that is none, one.
    fn part(size: usize, parts: usize) -> Self {
        Self {
            size: (size / parts).max(1),
            held: 0,
        }
    }

    fn admits(&self, to_what_is_kept: bool) -> bool {
        let kept = if to_what_is_kept {
            0
        } else {
            self.size / KEPT_ONE_IN
        };
        self.held < self.size - kept
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::health::IN_FLIGHT_MAX;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;
    const TRUSTED: Health = Health::Trusted { failures: 0 };
    const PROBED: Health = Health::OnProbation {
        failures: 9,
        probe_at: NOW,
    };

    /// The n-th endpoint of a tenant, which is owed `due` deliveries.
    fn endpoint(tenant: u8, nth: u128, health: Health, due: u128) -> Owed {
        let first = (u128::from(tenant) << 64) + (nth << 32);
        Owed {
            tenant: Uuid::from_u128(tenant.into()),
            health,
            under_way: 0,
            here: 0,
            due: (first..first + due).map(Uuid::from_u128).collect(),
            since: NOW,
        }
    }

    fn endpoints(tenant: u8, count: u128, health: Health) -> Vec<Owed> {
        (0..count)
            .map(|nth| endpoint(tenant, nth, health, 8))
            .collect()
    }

    /// How many of `taken` are an endpoint's.
    fn of(endpoint: &Owed, taken: &[Uuid]) -> usize {
        let due: HashSet<&Uuid> = endpoint.due.iter().collect();
        taken.iter().filter(|message| due.contains(message)).count()
    }

    fn all_free(all: usize) -> Slots {
        Slots { all, free: all }
    }

    #[test]
    fn dead_endpoints_leave_a_live_one_its_whole_share() {
        let mut owed = endpoints(1, 1_000, PROBED);
        owed.push(endpoint(2, 0, TRUSTED, 8));
        let taken = share_out(&owed, all_free(256), NOW);
        assert_eq!(of(&owed[1_000], &taken), IN_FLIGHT_MAX);
        assert_eq!(taken.len(), 256 / PROBES_ONE_IN / TENANT_ONE_IN + 8);
    }

    #[test]
    fn endpoints_that_die_all_at_once_leave_a_live_one_a_slot_in_turn() {
        for tenant_of_the_live_one in [1, 3] {
            let mut owed = endpoints(1, 20, TRUSTED);
            owed.extend(endpoints(2, 20, TRUSTED));
            let taken = share_out(&owed, all_free(256), NOW);
            assert_eq!(taken.len(), 192);
            for dead in &mut owed {
                dead.here = of(dead, &taken);
                dead.under_way = dead.here;
            }
            owed.push(endpoint(tenant_of_the_live_one, 99, TRUSTED, 8));
            let slots = Slots { all: 256, free: 64 };
            assert_eq!(share_out(&owed, slots, NOW), owed[40].due[..1]);
        }
    }

    #[test]
    fn a_tenant_with_many_endpoints_does_not_go_before_one_with_a_single_one() {
        for health in [TRUSTED, PROBED] {
            let mut owed = endpoints(1, 100, health);
            for other in &mut owed {
                other.since = Timestamp::MIN;
            }
            owed.push(endpoint(2, 0, health, 8));
            let taken = share_out(&owed, Slots { all: 256, free: 90 }, NOW);
            assert!(taken[..2].contains(&owed[100].due[0]), "{health:?}");
        }
    }

    #[test]
    fn those_who_were_probed_last_come_last() {
        let mut owed = endpoints(1, 100, PROBED);
        for one in &mut owed {
            one.since = Timestamp::MIN;
        }
        let now = Timestamp::from_second(10).unwrap();
        for (one, second) in owed.iter_mut().zip([7, 3, 5].into_iter().cycle()) {
            let probe_at = Timestamp::from_second(second).unwrap();
            one.health = Health::OnProbation {
                failures: 9,
                probe_at,
            };
        }
        let taken = share_out(&owed, all_free(256), now);
        assert_eq!(taken.len(), 32);
        assert!(owed.iter().all(|one| {
            of(one, &taken) == 0 || one.health.probe_at() == Timestamp::from_second(3).ok()
        }));
    }

    #[test]
    fn one_slot_serves_everyone_in_the_end() {
        for health in [TRUSTED, PROBED] {
            let owed = endpoints(1, 3, health);
            assert_eq!(share_out(&owed, all_free(1), NOW).len(), 1);
        }
    }

    fn any_endpoint() -> impl Strategy<Value = (u8, usize, usize, usize, u128)> {
        (0..4_u8, 0..3_usize, 0..4_usize, 0..4_usize, 0..9_u128)
    }

    proptest! {
        #[test]
        fn nobody_gets_more_than_its_share(
            all in 1..300_usize,
            some in vec(any_endpoint(), 0..80),
        ) {
            let owed: Vec<Owed> = some
                .into_iter()
                .zip(0..)
                .map(|((tenant, health, here, elsewhere, due), nth)| {
                    let health = [Health::Untried, TRUSTED, PROBED][health];
                    let under_way = here + elsewhere;
                    Owed { under_way, here, ..endpoint(tenant, nth, health, due) }
                })
                .collect();
            let held: usize = owed.iter().map(|one| one.here).sum();
            let free = all.saturating_sub(held);
            let taken = share_out(&owed, Slots { all, free }, NOW);

            prop_assert!(taken.len() <= free);
            prop_assert_eq!(taken.iter().collect::<HashSet<_>>().len(), taken.len());
            for one in &owed {
                let got = of(one, &taken);
                prop_assert!(got == 0 || one.under_way + got <= one.health.in_flight_max(NOW));
                let oldest = &one.due[..got];
                prop_assert!(oldest.iter().all(|message| taken.contains(message)));
            }
            let within = |size: usize, some: &dyn Fn(&&Owed) -> bool| {
                let held: usize = owed.iter().filter(some).map(|one| one.here).sum();
                let got: usize = owed.iter().filter(some).map(|one| of(one, &taken)).sum();
                got == 0 || held + got <= size.max(1)
            };
            prop_assert!(within(all / 4, &|one| one.key().probes));
            for tenant in 0..4 {
                let tenant = Uuid::from_u128(tenant);
                let has = |one: &&Owed, probes| one.key() == Key { tenant, probes };
                prop_assert!(within(all / 2, &|one| has(one, false)));
                prop_assert!(within((all / 4).max(1) / 2, &|one| has(one, true)));
            }
        }
    }
}
