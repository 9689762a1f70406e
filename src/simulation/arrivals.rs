//! When requests arrive: a Poisson process, whose rate may change at certain times.

use std::{collections::BTreeMap, time::Duration};

use super::chance::Chance;

/// The times of arrivals since the start, in order. They don't depend on the responses: an open loop, as of many
/// clients that don't know of each other.
#[derive(Debug)]
pub(super) struct Arrivals {
    chance: Chance,
    /// Requests per second, from this time on. The first entry is at 0.
    rates: BTreeMap<Duration, f64>,
    /// The time of the last arrival, or the last change of the rate.
    at: Duration,
    end: Duration,
}

impl Arrivals {
    pub(super) fn new(chance: Chance, rates: BTreeMap<Duration, f64>, end: Duration) -> Self {
        Self { chance, rates, at: Duration::ZERO, end }
    }
}

impl Iterator for Arrivals {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        while self.at < self.end {
            let rate = self.rates.range(..=self.at).next_back().map_or(0.0, |(_, rate)| *rate);
            let change = self.rates.range(self.at..).map(|(at, _)| *at).find(|at| *at > self.at);
            let change = change.unwrap_or(self.end).min(self.end);
            let gap = Duration::try_from_secs_f64(-self.chance.unit().ln() / rate).unwrap_or(Duration::MAX);
            let next = self.at.saturating_add(gap);
            if next < change {
                self.at = next;
                return Some(next);
            }
            // The process has no memory, so that the next gap may be drawn anew at the change.
            self.at = change;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrivals_follow_the_rate_and_its_changes() {
        let second = Duration::from_secs;
        let rates = [(second(0), 1000.0), (second(10), 0.0), (second(20), 3000.0)].into();
        let all: Vec<_> = Arrivals::new(Chance::new(5, 0), rates, second(30)).collect();
        assert!(all.is_sorted());
        let count = |from, to| all.iter().filter(|&&at| second(from) <= at && at < second(to)).count();
        assert!((9_700..10_300).contains(&count(0, 10)), "{}", count(0, 10));
        assert_eq!(count(10, 20), 0);
        assert!((29_500..30_500).contains(&count(20, 30)), "{}", count(20, 30));
        assert_eq!(count(30, 1000), 0);

        // The gaps are exponential: their standard deviation is their mean.
        let gaps: Vec<f64> = all[..9_000].windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        assert!((variance.sqrt() / mean - 1.0).abs() < 0.05, "{} {mean}", variance.sqrt());
    }
}
