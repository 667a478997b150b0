//! The regressions: from a text to each model's probability, from an answer's signals to one.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::StepClass;
use crate::features::{FEATURE_BITS, Features, SURFACE_COUNT};
use crate::signals::Signals;

const BUCKETS: usize = 1 << FEATURE_BITS;
/// Keeps logarithms of shares of 0 and 1 finite.
const SHARE_SLACK: f64 = 1e-3;

/// A straight line in log-odds.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Line {
    pub(crate) slope: f64,
    pub(crate) intercept: f64,
}

impl Line {
    pub(crate) fn probability(self, log_odds: f64) -> f64 {
        sigmoid(self.intercept + self.slope * log_odds)
    }
}

/// A regression of all models on hashed grams, as in the file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct GramsFile {
    /// The buckets that were seen, ascending.
    pub(crate) index: Vec<u16>,
    /// How rare each is.
    pub(crate) idf: Vec<f32>,
    /// For each model, a weight for each bucket.
    pub(crate) weights: Vec<Vec<f32>>,
    pub(crate) intercepts: Vec<f64>,
}

/// A regression of all models on the surface features.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SurfaceFile {
    pub(crate) mean: Vec<f64>,
    pub(crate) scale: Vec<f64>,
    pub(crate) weights: Vec<Vec<f64>>,
    pub(crate) intercepts: Vec<f64>,
}

/// What the training texts look like, to notice others.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DomainFile {
    /// Greatest distance of a surface feature from its mean, in standard deviations.
    pub(crate) surface_max: f64,
    /// The most frequent buckets.
    pub(crate) signature: Vec<u16>,
    /// Share of the training texts that have each.
    pub(crate) share: Vec<f64>,
    /// Least mean log-likelihood of having and not having them.
    pub(crate) fit_min: f64,
}

/// The part of the file that is about texts.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TextFile {
    /// Weight of the grams beside the average's 1.
    pub(crate) grams_weight: f64,
    /// Weight of the surface features beside the average's 1.
    pub(crate) surface_weight: f64,
    pub(crate) grams: GramsFile,
    pub(crate) surface: SurfaceFile,
    pub(crate) domain: DomainFile,
}

/// From a text to the probability that each model is right.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TextModel {
    width: usize,
    /// For each bucket: how rare it is (0: not seen), then a weight for each model.
    table: Vec<f32>,
    intercepts: Vec<f64>,
    surface: SurfaceFile,
    domain: DomainFile,
    grams_weight: f64,
    surface_weight: f64,
}

impl TextModel {
    pub(crate) fn new(file: TextFile, width: usize) -> Self {
        let stride = width + 1;
        let mut table = vec![0.0; BUCKETS * stride];
        for (idx, bucket) in file.grams.index.iter().enumerate() {
            let row = usize::from(*bucket) * stride;
            table[row] = file.grams.idf[idx];
            for model in 0..width {
                table[row + 1 + model] = file.grams.weights[model][idx];
            }
        }
        Self {
            width,
            table,
            intercepts: file.grams.intercepts,
            surface: file.surface,
            domain: file.domain,
            grams_weight: file.grams_weight,
            surface_weight: file.surface_weight,
        }
    }

    /// Weight of what the text says, beside 1 for the average.
    pub(crate) fn weight(&self) -> f64 {
        self.grams_weight + self.surface_weight
    }

    /// Whether a text looks like those that were learnt from.
    pub(crate) fn in_domain(&self, features: &Features) -> bool {
        let standard = self.standard(features);
        if standard.iter().any(|value| value.abs() > self.domain.surface_max) {
            return false;
        }
        let shares = self.domain.signature.iter().zip(&self.domain.share);
        let fit: f64 = shares
            .map(|(bucket, share)| {
                let seen = if features.has(*bucket) { *share } else { 1.0 - share };
                (seen + SHARE_SLACK).ln()
            })
            .sum();
        fit >= self.domain.fit_min * self.domain.signature.len() as f64
    }

    /// Each model's probability, from grams and surface.
    pub(crate) fn probabilities(&self, features: &Features) -> Vec<f64> {
        let mut sums = vec![0.0f64; self.width];
        let stride = self.width + 1;
        let mut square = 0.0f64;
        for (bucket, count) in features.grams() {
            let row = usize::from(bucket) * stride;
            let entry = &self.table[row..row + stride];
            let times = if count == 1 { 1.0 } else { 1.0 + f64::from(count).ln() };
            let value = times * f64::from(entry[0]);
            square += value * value;
            for (sum, weight) in sums.iter_mut().zip(&entry[1..]) {
                *sum += value * f64::from(*weight);
            }
        }
        let length = if square > 0.0 { square.sqrt() } else { 1.0 };
        let standard = self.standard(features);
        let weight = self.weight().max(1e-9);
        for (model, sum) in sums.iter_mut().enumerate() {
            let grams = sigmoid(*sum / length + self.intercepts[model]);
            let weights = self.surface.weights[model].iter().zip(&standard);
            let surface: f64 = weights.map(|(weight, value)| weight * value).sum();
            let surface = sigmoid(surface + self.surface.intercepts[model]);
            *sum = (self.grams_weight * grams + self.surface_weight * surface) / weight;
        }
        sums
    }

    fn standard(&self, features: &Features) -> [f64; SURFACE_COUNT] {
        let mut values = [0.0; SURFACE_COUNT];
        for (idx, value) in values.iter_mut().enumerate() {
            let raw = f64::from(features.surface()[idx]);
            *value = (raw - self.surface.mean[idx]) / self.surface.scale[idx];
        }
        values
    }
}

/// The part of the file that is about answers.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AnswerFile {
    pub(crate) mean: Vec<f64>,
    pub(crate) scale: Vec<f64>,
    pub(crate) weights: Vec<f64>,
    pub(crate) intercept: f64,
    /// Calibration for each class it was learnt from.
    pub(crate) classes: BTreeMap<StepClass, Line>,
}

/// From an answer's signals to the probability that it is right.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct AnswerCheck(AnswerFile);

impl AnswerCheck {
    pub(crate) fn new(file: AnswerFile) -> Self {
        Self(file)
    }

    /// None for a class that it was not learnt from.
    pub(crate) fn p_ok(&self, class: StepClass, signals: &Signals) -> Option<f64> {
        let line = self.0.classes.get(&class)?;
        let mut sum = self.0.intercept;
        for (idx, value) in signals.vector().into_iter().enumerate() {
            sum += self.0.weights[idx] * (value - self.0.mean[idx]) / self.0.scale[idx];
        }
        Some(line.probability(sum))
    }
}

fn sigmoid(value: f64) -> f64 {
    1.0 / (1.0 + (-value).exp())
}
