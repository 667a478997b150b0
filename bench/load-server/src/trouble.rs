//! What keeps a request from a plain answer: a limit on requests, and faults on purpose.
//!
//! Invariant: faults follow from the seed and the number of the request alone, so that two runs with the same
//! requests in the same order meet the same faults.

use std::collections::{HashMap, VecDeque};
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use crate::options::Options;

const MINUTE: Duration = Duration::from_secs(60);
/// How long a client is asked to wait by a refusal that is a fault.
const FAULT_WAIT_MS: u64 = 100;

/// What becomes of a chat request.
#[derive(Debug)]
pub enum Verdict {
    /// It is answered; these header lines go with the answer.
    Serve(String),
    /// It is not answered, or not as it should be.
    Spoil(Spoiled),
}

/// An answer that is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Spoiled {
    /// An error status with a body, and header lines.
    Refused(&'static str, String),
    /// Nothing comes, and the connection stays open.
    Hang,
    /// Half an answer comes, and the connection ends.
    Cut,
    /// A whole answer comes that is no JSON.
    Garbage,
}

/// The limits of keys, and the faults to come.
#[derive(Debug)]
pub struct Trouble {
    requests_per_minute: usize,
    fault_per_mille: u64,
    /// Requests of the last minute, by a hash of the key.
    seen: HashMap<u64, VecDeque<Instant>>,
    random: u64,
    /// Requests refused because of the limit.
    pub refused_count: u64,
    /// Requests spoiled on purpose.
    pub fault_count: u64,
}

impl Trouble {
    /// The trouble that the options ask for.
    pub fn new(options: &Options) -> Self {
        Self {
            requests_per_minute: options.requests_per_minute,
            fault_per_mille: options.fault_per_mille as u64,
            seen: HashMap::new(),
            random: options.seed.wrapping_mul(0xd134_2543_de82_ef95),
            refused_count: 0,
            fault_count: 0,
        }
    }

    /// Decides about a request that a key makes now.
    pub fn judge(&mut self, key: u64, now: Instant) -> Verdict {
        if self.next() % 1000 < self.fault_per_mille {
            self.fault_count += 1;
            return Verdict::Spoil(self.fault());
        }
        if self.requests_per_minute == 0 {
            return Verdict::Serve(String::new());
        }
        let limit = self.requests_per_minute;
        let seen = self.seen.entry(key).or_default();
        while seen.front().is_some_and(|at| now - *at >= MINUTE) {
            seen.pop_front();
        }
        if seen.len() < limit {
            seen.push_back(now);
            return Verdict::Serve(limit_lines(limit, limit - seen.len()));
        }
        self.refused_count += 1;
        let wait = seen.front().map_or(MINUTE, |first| MINUTE - (now - *first));
        let mut lines = limit_lines(limit, 0);
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        let _ = write!(lines, "retry-after: {seconds}\r\n");
        Verdict::Spoil(Spoiled::Refused("429 Too Many Requests", lines))
    }

    fn fault(&mut self) -> Spoiled {
        let none = String::new;
        match self.next() % 6 {
            0 => {
                let lines = format!("retry-after-ms: {FAULT_WAIT_MS}\r\n");
                Spoiled::Refused("429 Too Many Requests", lines)
            }
            1 => Spoiled::Refused("500 Internal Server Error", none()),
            2 => Spoiled::Refused("503 Service Unavailable", none()),
            3 => Spoiled::Hang,
            4 => Spoiled::Cut,
            _ => Spoiled::Garbage,
        }
    }

    /// # Source
    /// SplitMix64, G. Steele, D. Lea and C. Flood, "Fast splittable pseudorandom number generators",
    /// 2014.
    fn next(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

fn limit_lines(limit: usize, remaining: usize) -> String {
    format!(
        "x-ratelimit-limit-requests: {limit}\r\nx-ratelimit-remaining-requests: {remaining}\r\n"
    )
}
