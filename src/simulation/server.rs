//! When a member responds to each request. All that happens to it is known from the start, so that the response to a
//! request is known when it arrives: no queue is kept, only the time at which each worker becomes free.

use std::{cmp::Reverse, collections::BinaryHeap, time::Duration};

use http::StatusCode;

use super::{
    behaviour::Kind,
    chance::Chance,
    member::{SimulatedMember, Window},
    service_time::times,
};

/// The workers of one member. Times are counted from the start of the simulation.
#[derive(Debug)]
pub(super) struct Server {
    workers: usize,
    /// When each busy worker becomes free, the next one first.
    busy: BinaryHeap<Reverse<Duration>>,
    /// In the order of their starts.
    windows: Vec<Window>,
    /// When the last request arrived.
    last: Duration,
    /// For the shares of behaviours.
    chance: Chance,
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Fate {
    /// The connection is refused at once.
    Refused,
    /// The connection is closed at this time, without a response.
    Closed(Duration),
    /// The response comes at this time, or never.
    Response(Option<Duration>, StatusCode),
}

impl Server {
    pub(super) fn new(member: &SimulatedMember, chance: Chance) -> Self {
        let SimulatedMember { workers, ref windows, .. } = *member;
        Self { workers, busy: BinaryHeap::new(), windows: windows.clone(), last: Duration::ZERO, chance }
    }

    /// Takes a request that arrives now and needs a worker for `work`.
    pub(super) fn arrive(&mut self, now: Duration, work: Duration) -> Fate {
        self.restart(now);
        if self.during(now).any(|window| matches!(window.behaviour.kind, Kind::Down)) {
            return Fate::Refused;
        }
        let fate = match self.failure(now) {
            Some((after, Some(status))) => Fate::Response(self.end(now, after), status),
            Some((after, None)) => match self.end(now, after) {
                Some(at) => Fate::Closed(at),
                None => Fate::Response(None, StatusCode::OK),
            },
            None => Fate::Response(self.work(now, work), StatusCode::OK),
        };
        match (self.death(now), fate) {
            (Some(death), Fate::Response(Some(at), _) | Fate::Closed(at)) if at < death => fate,
            (Some(death), _) => Fate::Closed(death),
            (None, _) => fate,
        }
    }

    /// Forgets the work of a process that has died since the last request.
    fn restart(&mut self, now: Duration) {
        let is_down = |window: &Window| matches!(window.behaviour.kind, Kind::Down);
        if self.windows.iter().any(|window| is_down(window) && self.last < window.start && window.start <= now) {
            self.busy.clear();
        }
        self.last = now;
    }

    /// When the process dies next.
    fn death(&self, now: Duration) -> Option<Duration> {
        let dies = |window: &&Window| matches!(window.behaviour.kind, Kind::Down) && window.start > now;
        self.windows.iter().find(dies).map(|window| window.start)
    }

    /// The failure that the request gets instead of a worker: after which time, and with which status.
    fn failure(&mut self, now: Duration) -> Option<(Duration, Option<StatusCode>)> {
        let Self { windows, chance, .. } = self;
        windows.iter().filter(|window| window.contains(now)).find_map(|window| {
            let status = match window.behaviour.kind {
                Kind::Status(status) => Some(status),
                Kind::Close => None,
                Kind::Down | Kind::Hang | Kind::Slow(_) => return None,
            };
            (chance.unit() < window.behaviour.share).then_some((window.behaviour.after, status))
        })
    }

    /// Gives the request to the next free worker. Returns when the work is done.
    fn work(&mut self, now: Duration, work: Duration) -> Option<Duration> {
        while self.busy.peek().is_some_and(|Reverse(free)| *free <= now) {
            self.busy.pop();
        }
        let begin = if self.busy.len() < self.workers { now } else { self.busy.pop()?.0 };
        let slower = self.during(begin).filter_map(|window| match window.behaviour.kind {
            Kind::Slow(factor) => Some(factor),
            _ => None,
        });
        let factor = slower.product::<f64>();
        let end = self.end(begin, times(work, factor));
        self.busy.push(Reverse(end.unwrap_or(Duration::MAX)));
        end
    }

    /// When work ends that begins then, and stands still while the process does.
    fn end(&self, begin: Duration, work: Duration) -> Option<Duration> {
        let mut end = begin.saturating_add(work);
        // Up to then, all pauses are counted: they may overlap.
        let mut counted = begin;
        for window in self.windows.iter().filter(|window| matches!(window.behaviour.kind, Kind::Hang)) {
            let from = window.start.max(counted);
            if from < window.end && (window.start < end || window.start <= begin) {
                end = end.saturating_add(window.end.saturating_sub(from));
                counted = window.end;
            }
        }
        (end < Duration::MAX).then_some(end)
    }

    fn during(&self, at: Duration) -> impl Iterator<Item = &Window> {
        self.windows.iter().filter(move |window| window.contains(at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulation::{Behaviour, ServiceTime, arrivals::Arrivals};

    fn ms(time: u64) -> Duration {
        Duration::from_millis(time)
    }

    fn server(member: &SimulatedMember) -> Server {
        Server::new(member, Chance::new(1, 1))
    }

    fn member() -> SimulatedMember {
        SimulatedMember::new("http://a")
    }

    fn ok(at: u64) -> Fate {
        Fate::Response(Some(ms(at)), StatusCode::OK)
    }

    #[test]
    fn requests_wait_for_a_worker_in_order() {
        let mut server = server(&member().workers(2));
        let ends = [(0, 100), (10, 20), (20, 20), (30, 20), (200, 5)].map(|(at, work)| server.arrive(ms(at), ms(work)));
        // The third finds a worker at 30, the fourth at 50, the last at once.
        assert_eq!(ends, [ok(100), ok(30), ok(50), ok(70), ok(205)]);
    }

    #[test]
    fn a_dead_process_closes_what_is_under_way_refuses_the_rest_and_comes_back_idle() {
        let mut server = server(&member().during(ms(100)..ms(200), Behaviour::down()));
        assert_eq!(server.arrive(ms(0), ms(60)), ok(60));
        assert_eq!(server.arrive(ms(50), ms(30)), ok(90));
        assert_eq!(server.arrive(ms(51), ms(30)), Fate::Closed(ms(100)));
        assert_eq!(server.arrive(ms(52), ms(1000)), Fate::Closed(ms(100)));
        assert_eq!(server.arrive(ms(100), ms(1)), Fate::Refused);
        assert_eq!(server.arrive(ms(199), ms(1)), Fate::Refused);
        assert_eq!(server.arrive(ms(200), ms(1)), ok(201));
    }

    #[test]
    fn a_process_that_stands_still_works_on_afterwards() {
        let hangs = member().workers(9).during(ms(100)..ms(200), Behaviour::hang());
        let mut server = server(&hangs.during(ms(150)..ms(300), Behaviour::hang()));
        assert_eq!(server.arrive(ms(0), ms(100)), ok(100));
        assert_eq!(server.arrive(ms(50), ms(60)), ok(310));
        assert_eq!(server.arrive(ms(120), ms(10)), ok(310));
        assert_eq!(server.arrive(ms(300), ms(10)), ok(310));

        let mut server = self::server(&member().during(ms(100).., Behaviour::hang()));
        assert_eq!(server.arrive(ms(100), ms(1)), Fate::Response(None, StatusCode::OK));
        // It waits for the worker that is never free.
        assert_eq!(server.arrive(ms(1000), ms(1)), Fate::Response(None, StatusCode::OK));
    }

    #[test]
    fn a_member_without_workers_never_responds() {
        assert_eq!(server(&member().workers(0)).arrive(ms(1), ms(1)), Fate::Response(None, StatusCode::OK));
    }

    #[test]
    fn slow_times_multiply_the_work_that_begins_in_them() {
        let slow = member().during(ms(100)..ms(200), Behaviour::slow(3.0)).during(ms(150).., Behaviour::slow(2.0));
        let mut server = server(&slow);
        assert_eq!(server.arrive(ms(90), ms(20)), ok(110));
        assert_eq!(server.arrive(ms(95), ms(20)), ok(170), "it begins at 110");
        assert_eq!(server.arrive(ms(180), ms(5)), ok(210));
        assert_eq!(server.arrive(ms(300), ms(10)), ok(320));
    }

    #[test]
    fn a_share_of_requests_fails_without_a_worker() {
        let fails = Behaviour::status(StatusCode::BAD_GATEWAY).share(0.3).after(ms(2));
        let mut server = server(&member().service_time(ServiceTime::fixed(ms(0))).during(.., fails));
        let fates: Vec<_> = (0..10_000).map(|at| server.arrive(ms(at), ms(0))).collect();
        let failed = (0..).zip(&fates);
        let failed = failed.filter(|&(at, fate)| *fate == Fate::Response(Some(ms(at + 2)), StatusCode::BAD_GATEWAY));
        assert!((2_850..3_150).contains(&failed.count()));
        assert_eq!(self::server(&member().during(.., Behaviour::close())).arrive(ms(7), ms(50)), Fate::Closed(ms(8)));
    }

    /// Response times of requests at rate `load * workers`, with a mean service time of one second, sorted.
    fn times_in_queue(workers: usize, service_time: ServiceTime, load: f64) -> Vec<f64> {
        let mut server = server(&member().workers(workers));
        let rates = [(Duration::ZERO, load * workers as f64)].into();
        let mut work = Chance::new(2, 0);
        let mut times: Vec<_> = Arrivals::new(Chance::new(3, 0), rates, Duration::from_secs(400_000 / workers as u64))
            .map(|at| match server.arrive(at, service_time.of(work.unit())) {
                Fate::Response(Some(end), _) => (end - at).as_secs_f64(),
                fate => panic!("{fate:?}"),
            })
            .collect();
        times.sort_by(f64::total_cmp);
        times
    }

    #[track_caller]
    fn assert_near(measured: f64, expected: f64, tolerance: f64) {
        assert!((measured / expected - 1.0).abs() < tolerance, "{measured} instead of {expected}");
    }

    #[test]
    fn queues_are_as_long_as_queueing_theory_has_them() {
        let mean = |times: &[f64]| times.iter().sum::<f64>() / times.len() as f64;
        let p99 = |times: &[f64]| times[times.len() / 100 * 99];
        let second = Duration::from_secs(1);

        // M/M/1: exponential with mean 1 / (1 - ρ).
        let times = times_in_queue(1, ServiceTime::exponential(second), 0.8);
        assert_near(mean(&times), 5.0, 0.05);
        assert_near(p99(&times), 5.0 * 100_f64.ln(), 0.07);

        // M/D/1: a wait of ρ / 2(1 - ρ) (Pollaczek and Khinchine).
        let times = times_in_queue(1, ServiceTime::fixed(second), 0.8);
        assert_near(mean(&times), 3.0, 0.05);

        // M/M/4: a wait of C / 4(1 - ρ), with Erlang's C = 0.5964.
        let times = times_in_queue(4, ServiceTime::exponential(second), 0.8);
        assert_near(mean(&times), 1.0 + 0.5964 / 0.8, 0.05);
    }
}
