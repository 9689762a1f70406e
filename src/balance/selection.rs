//! The member of a request: the one of its session, else the one that is picked.

use std::{
    fmt, mem,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use axum_core::body::Body;
use http::Request;
use tokio::time::Instant;

use super::{
    pick::{ConsistentHash, HashedMember, Pick, Turns, stable_hash},
    random::Random,
    slow_start::SlowStart,
    snapshot::{Entry, View},
    sticky::{Assignment, CookieValue, Session, Sessions, Sticky},
};
use crate::tried::MemberId;

/// The options of a set by which the member of a request is chosen.
#[derive(Default)]
pub(super) struct Selection {
    pub(super) pick: Pick,
    pub(super) sticky: Option<Sticky>,
    /// The number of members that had their turn.
    turn: AtomicUsize,
    /// Of the last list of members. A set has many views of one list, because each change of a member's health makes
    /// one.
    prepared: Mutex<Arc<Prepared>>,
}

/// The members of a list, prepared for look-ups. Those that are out are part of it.
#[derive(Debug, Default)]
pub(super) struct Prepared {
    members: Box<[(MemberId, u32)]>,
    hash: Option<ConsistentHash>,
    /// The values of the cookies, by the position of the member.
    values: Box<[CookieValue]>,
    sessions: Sessions,
}

/// What a view needs to choose members.
#[derive(Debug, Default)]
pub(super) struct Lookup {
    prepared: Arc<Prepared>,
    /// The turns of the eligible members, for round robin.
    turns: Option<Turns>,
    is_eligible: Box<[bool]>,
}

/// What a request determines about its member.
#[derive(Debug)]
pub(super) struct Wish {
    session: Session,
    key: Option<u64>,
}

/// The member of a request, by its position.
#[derive(Clone, Copy, Debug)]
pub(super) struct Choice {
    pub(super) position: usize,
    /// Whether it's the member of the request's session, whose cookie the client has.
    is_home: bool,
}

impl Choice {
    pub(super) fn home(position: usize) -> Self {
        Self { position, is_home: true }
    }

    pub(super) fn picked(position: usize) -> Self {
        Self { position, is_home: false }
    }
}

/// Which part of its requests a member gets.
#[derive(Clone, Copy)]
enum Part<'a> {
    /// Those of its slow start, and of the weight that its check gives it.
    Kept(Option<&'a SlowStart>),
    Whole,
}

impl Selection {
    /// Returns the members, prepared for look-ups. The last list is kept, because a long one takes its time: it's
    /// prepared before the lock is taken under which a view is made.
    pub(super) fn prepared(&self, entries: &[Entry]) -> Arc<Prepared> {
        let is_hash = matches!(self.pick, Pick::Hash(_)) || self.sticky.as_ref().is_some_and(Sticky::is_by_key);
        let has_cookie = self.sticky.as_ref().is_some_and(|sticky| !sticky.is_by_key());
        if !is_hash && !has_cookie {
            return Arc::default();
        }
        let members = entries.iter().map(|entry| (entry.state.id, entry.weight));
        let cached = || self.prepared.lock().unwrap_or_else(PoisonError::into_inner);
        let last = cached().clone();
        if last.members.iter().copied().eq(members.clone()) {
            return last;
        }
        let names: Vec<_> = entries.iter().map(|entry| entry.state.member.key()).collect();
        let hashed = names.iter().zip(entries);
        let hashed = hashed.map(|(name, entry)| HashedMember { hash: stable_hash(name), weight: entry.weight });
        let sticky = self.sticky.as_ref().filter(|_| has_cookie);
        let values: Box<[_]> =
            sticky.into_iter().flat_map(|sticky| names.iter().filter_map(|name| sticky.value(name))).collect();
        let prepared = Arc::new(Prepared {
            members: members.collect(),
            hash: is_hash.then(|| ConsistentHash::new(hashed)),
            sessions: Sessions::new(values.iter().copied()),
            values,
        });
        let last = mem::replace(&mut *cached(), prepared.clone());
        drop(last);
        prepared
    }

    /// Prepares a view with these eligible members.
    pub(super) fn lookup(&self, entries: &[Entry], eligible: &[u32]) -> Lookup {
        let mut is_eligible: Box<[_]> = vec![false; entries.len()].into();
        for &position in eligible {
            is_eligible[position as usize] = true;
        }
        let turn = |&position: &u32| (position, entries[position as usize].effective_weight);
        let turns = || Turns::new(eligible.iter().map(turn));
        Lookup {
            prepared: self.prepared(entries),
            turns: matches!(self.pick, Pick::RoundRobin).then(turns),
            is_eligible,
        }
    }

    /// Finds what the request determines about its member, and removes the cookie of its session.
    pub(super) fn wish(&self, request: &mut Request<Body>, view: &View) -> Wish {
        let session = self
            .sticky
            .as_ref()
            .map_or(Session::None, |sticky| sticky.session(request, &view.lookup.prepared.sessions));
        let key = match &self.pick {
            Pick::Hash(key) => key.of(request),
            Pick::LeastRequests | Pick::RoundRobin => None,
        };
        Wish { session, key }
    }

    /// Returns the member of the request's session, if it's `usable`. It isn't if it's out.
    pub(super) fn home(&self, wish: &Wish, view: &View, usable: impl Fn(&Entry) -> bool) -> Option<usize> {
        let Lookup { prepared, is_eligible, .. } = &view.lookup;
        match &wish.session {
            Session::Assigned(value) => prepared.sessions.member(value).filter(|&position| {
                let entry = &view.entries[position];
                (is_eligible[position] || entry.keeps_sessions) && usable(entry)
            }),
            Session::Key(key) => {
                let is_usable = |position: usize| is_eligible[position] && usable(&view.entries[position]);
                prepared.hash.as_ref().and_then(|hash| hash.owner(*key, is_usable))
            }
            Session::Unassigned | Session::None => None,
        }
    }

    /// Picks a member among those that are eligible and `usable`: not `except` if there is another, and one in its slow
    /// start more rarely.
    pub(super) fn pick(
        &self,
        wish: &Wish,
        view: &View,
        random: &Random,
        except: Option<MemberId>,
        usable: impl Fn(&Entry) -> bool,
    ) -> Option<usize> {
        let slow_start = view.has_slow_start.then(|| SlowStart::new(view, random, Instant::now()));
        let is_other = |entry: &Entry| Some(entry.state.id) != except;
        let in_part = |entry: &Entry| usable(entry) && is_other(entry);
        self.picked(wish, view, random, Part::Kept(slow_start.as_ref()), in_part)
            // All others are out, in their slow start, or keep none of the keys.
            .or_else(|| self.picked(wish, view, random, Part::Whole, usable))
    }

    fn picked(
        &self,
        wish: &Wish,
        view: &View,
        random: &Random,
        part: Part<'_>,
        usable: impl Fn(&Entry) -> bool,
    ) -> Option<usize> {
        let slow_start = if let Part::Kept(slow_start) = part { slow_start } else { None };
        let Lookup { prepared, turns, is_eligible } = &view.lookup;
        let entry = |position: usize| &view.entries[position];
        let is_usable = |position: usize| is_eligible[position] && usable(entry(position));
        let share = |position: usize| slow_start.and_then(|slow_start| slow_start.share(entry(position)));
        match (&prepared.hash, wish.key, turns) {
            (Some(hash), Some(key), _) => {
                // During the slow start, one key after the other comes home.
                let at = fraction(key);
                let keeps = |position: usize| match part {
                    Part::Kept(_) => at < share(position).unwrap_or(1.0) * entry(position).part(),
                    Part::Whole => true,
                };
                let is_usable = |position| is_usable(position) && keeps(position);
                let in_flight = |position| entry(position).state.load.in_flight();
                hash.owner_within_bound(key, is_usable, in_flight)
            }
            (_, _, Some(turns)) => {
                let next = || self.turn.fetch_add(1, Ordering::Relaxed);
                let passes = |position: usize| {
                    slow_start.zip(share(position)).is_some_and(|(slow, share)| slow.draw() >= f64::from(share))
                };
                let mut turn = next();
                // A turn that a member passes on is followed by the next one of all requests, because its neighbour
                // would otherwise have two in a row each time.
                for _ in 0..is_eligible.len() {
                    if !turns.member(turn, is_usable).is_some_and(passes) {
                        break;
                    }
                    turn = next();
                }
                turns.member(turn, is_usable)
            }
            _ => match slow_start {
                Some(slow_start) => view.pick_slowly(slow_start, random, usable),
                None => view.pick(random, usable),
            },
        }
    }

    /// Chooses a member that is out for a trial by a request. `None` if the request belongs to another one: it would
    /// leave its session.
    pub(super) fn choose_out(&self, wish: &Wish, view: &View, position: usize) -> Option<Choice> {
        let Prepared { hash, sessions, .. } = &*view.lookup.prepared;
        let owner = |key: Option<u64>| hash.as_ref().zip(key).and_then(|(hash, key)| hash.owner(key, |_| true));
        let (home, is_home) = match &wish.session {
            Session::Assigned(value) => (sessions.member(value), true),
            Session::Key(key) => (owner(Some(*key)), true),
            Session::Unassigned | Session::None => (owner(wish.key), false),
        };
        home.is_none_or(|home| home == position).then_some(Choice { position, is_home })
    }

    /// Returns whether nothing of a request matters to the choice of its member.
    pub(super) fn is_by_load(&self) -> bool {
        matches!(self.pick, Pick::LeastRequests) && self.sticky.is_none()
    }

    /// Returns whether the members get different requests.
    pub(super) fn is_partitioned(&self) -> bool {
        matches!(self.pick, Pick::Hash(_)) || self.sticky.is_some()
    }

    /// Returns the cookie for the response of the member that was chosen.
    pub(super) fn assignment(&self, choice: Choice, request: &Request<Body>, view: &View) -> Option<Assignment> {
        let sticky = self.sticky.as_ref()?;
        let value = view.lookup.prepared.values.get(choice.position).filter(|_| !choice.is_home);
        sticky.assignment(request, value.copied())
    }
}

/// Returns a number between 0 and 1 that is the key's own.
fn fraction(key: u64) -> f32 {
    // 24 bits are exact. Those of the key itself decide about its owner.
    (stable_hash(key.to_be_bytes()) >> 40) as f32 / (1_u32 << 24) as f32
}

/// Clones the options. Sets that are built of two clones have their turns for themselves.
impl Clone for Selection {
    fn clone(&self) -> Self {
        Self { pick: self.pick.clone(), sticky: self.sticky.clone(), ..Self::default() }
    }
}

impl fmt::Debug for Selection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Selection").field("pick", &self.pick).field("sticky", &self.sticky).finish_non_exhaustive()
    }
}
