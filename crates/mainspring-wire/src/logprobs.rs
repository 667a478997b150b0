//! How sure a model was of what it wrote: the mean log-probability of the tokens that matter.
//!
//! Where an answer calls tools, the tokens of their arguments matter, if the server tells them:
//! they are found by their text. Else all tokens do.

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::value::Text;

/// The lowest log-probability that is taken at its word; some servers write -9999 for "none".
const LOGPROB_MIN: f64 = -100.0;

/// The tokens of an answer.
#[derive(Debug, Default)]
pub(crate) struct Tokens {
    /// Their texts in a row.
    text: Vec<u8>,
    /// Where each ends in it, and its log-probability.
    ends: Vec<(usize, f64)>,
}

#[derive(Debug, Deserialize)]
struct TokenJson<'a> {
    #[serde(borrow, default)]
    token: Text<'a>,
    #[serde(default)]
    bytes: Option<Vec<u8>>,
    #[serde(default)]
    logprob: Option<f64>,
}

impl Tokens {
    /// Adds the tokens of a JSON array; one that cannot be read adds nothing, because the answer
    /// stands without it.
    pub(crate) fn read(&mut self, raw: &RawValue) {
        let tokens: Vec<TokenJson<'_>> = serde_json::from_str(raw.get()).unwrap_or_default();
        for token in tokens {
            match &token.bytes {
                Some(bytes) => self.text.extend_from_slice(bytes),
                None => self.text.extend_from_slice(token.token.0.as_bytes()),
            }
            let logprob = token.logprob.filter(|logprob| logprob.is_finite());
            if let Some(logprob) = logprob {
                self.ends.push((self.text.len(), logprob.clamp(LOGPROB_MIN, 0.0)));
            }
        }
    }

    /// The mean over the tokens that overlap with one of the texts, or over all if none does.
    pub(crate) fn mean<'a>(&self, texts: impl Iterator<Item = &'a str>) -> Option<f64> {
        let mut sum = 0.0;
        let mut count = 0_u32;
        let (mut from, mut next) = (0, 0);
        for text in texts.filter(|text| !text.is_empty()) {
            let Some(at) = memchr::memmem::find(&self.text[from..], text.as_bytes()) else {
                continue;
            };
            let (start, end) = (from + at, from + at + text.len());
            from = end;
            while let Some(&(token_end, logprob)) = self.ends.get(next) {
                let token_start = if next == 0 { 0 } else { self.ends[next - 1].0 };
                if token_start >= end {
                    break;
                }
                next += 1;
                if token_end > start {
                    sum += logprob;
                    count += 1;
                }
            }
        }
        if count == 0 {
            sum = self.ends.iter().map(|(_, logprob)| logprob).sum();
            count = u32::try_from(self.ends.len()).unwrap_or(u32::MAX);
        }
        (count > 0).then(|| sum / f64::from(count))
    }
}
