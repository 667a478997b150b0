//! What a gateway counts, as Prometheus reads it.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use mainspring_engine::CompletionRecord;

/// Counters, shared by all workers.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    /// Requests under way.
    pub(crate) under_way: AtomicUsize,
    statuses: [AtomicU64; 6],
    model_calls: AtomicU64,
    model_failures: AtomicU64,
    escalations: AtomicU64,
    input_tokens: AtomicU64,
    output_tokens: AtomicU64,
    cost_usd_nanos: AtomicU64,
}

impl Metrics {
    /// Counts an answer by its status.
    pub(crate) fn answered(&self, status: u16) {
        let class = usize::from(status / 100).min(self.statuses.len() - 1);
        add(&self.statuses[class], 1);
    }

    /// Counts what a completion used.
    pub(crate) fn completed(&self, record: &CompletionRecord) {
        add(&self.model_calls, record.attempts.len() as u64);
        let failed = record.attempts.iter().filter(|attempt| attempt.error.is_some());
        add(&self.model_failures, failed.count() as u64);
        add(
            &self.escalations,
            u64::from(record.tier.is_some_and(|tier| tier > record.decision.tier)),
        );
        add(&self.input_tokens, record.usage.input_tokens);
        add(&self.output_tokens, record.usage.output_tokens);
        add(&self.cost_usd_nanos, (record.cost_usd.unwrap_or(0.0) * 1e9) as u64);
    }

    /// The text that a scraper gets.
    pub(crate) fn text(&self) -> String {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let mut out = String::with_capacity(1024);
        let mut put = |name: &str, kind: &str, labels: &str, value: f64| {
            let _ = writeln!(out, "# TYPE {name} {kind}\n{name}{labels} {value}");
        };
        let under_way = self.under_way.load(Ordering::Relaxed);
        put("mainspring_gateway_requests_under_way", "gauge", "", under_way as f64);
        let counters = [
            ("mainspring_gateway_model_calls_total", &self.model_calls),
            ("mainspring_gateway_model_failures_total", &self.model_failures),
            ("mainspring_gateway_escalations_total", &self.escalations),
            ("mainspring_gateway_input_tokens_total", &self.input_tokens),
            ("mainspring_gateway_output_tokens_total", &self.output_tokens),
        ];
        for (name, counter) in counters {
            put(name, "counter", "", read(counter) as f64);
        }
        let cost = read(&self.cost_usd_nanos) as f64 / 1e9;
        put("mainspring_gateway_cost_usd_total", "counter", "", cost);
        out.push_str("# TYPE mainspring_gateway_responses_total counter\n");
        for (class, counter) in self.statuses.iter().enumerate().skip(2) {
            let count = read(counter);
            let _ =
                writeln!(out, "mainspring_gateway_responses_total{{status=\"{class}xx\"}} {count}");
        }
        out
    }
}

fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}
