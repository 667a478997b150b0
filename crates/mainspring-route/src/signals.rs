//! What cheap checks of an answer find, as numbers. Nothing is decided here.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::StepClass;
use crate::arithmetic::check;
use crate::ground::{ground, words};

/// Of a longer question or answer only the end is looked at.
const TEXT_BYTES_MAX: usize = 32 * 1024;
/// Words in a row that count as said again.
const RUN_WORDS: usize = 4;
/// Words below which repetition means nothing.
const RUN_WORDS_MIN: usize = 24;

/// Phrases by which a model says that it is not sure.
const HEDGES: [&str; 16] = [
    "i'm not sure",
    "i am not sure",
    "not certain",
    "i think",
    "i believe",
    "it seems",
    "might be",
    "may be",
    "could be",
    "possibly",
    "perhaps",
    "probably",
    "most likely",
    "it is unclear",
    "difficult to",
    "hard to say",
];
/// Phrases by which a model says that it does not answer.
const REFUSALS: [&str; 10] = [
    "i cannot",
    "i can't",
    "i'm unable",
    "i am unable",
    "unable to determine",
    "cannot be determined",
    "not enough information",
    "does not provide",
    "i don't have",
    "as an ai",
];

/// An answer and what it is held against.
#[derive(Debug, Clone, Copy, Default)]
pub struct Evidence<'a> {
    /// What the step is for.
    pub class: StepClass,
    /// What was asked.
    pub question: &'a str,
    /// Other texts that the model saw: earlier messages, results of tools.
    pub context: &'a [&'a str],
    /// The answer's text.
    pub answer: &'a str,
    /// The arguments of its tool calls, as JSON.
    pub arguments: &'a [&'a str],
    /// Whether the answer ended because of its length.
    pub cut_off: bool,
    /// Whether the provider says that the model refused.
    pub refused: bool,
    /// Mean log-probability of its tokens, 0 or less.
    pub logprob_mean: Option<f64>,
    /// Share of further answers that say the same, 0 to 1.
    pub agreement: Option<f64>,
    /// What a judging model thinks of it, 0 to 1.
    pub judge: Option<f64>,
    /// Probability of a right answer as estimated before the call: `Scored::p_ok`.
    pub p_before: Option<f64>,
}

/// What cheap checks of an answer found.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Signals {
    /// The answer ended because of its length.
    pub cut_off: bool,
    /// The provider says that the model refused.
    pub refused: bool,
    /// There is neither text nor a tool call.
    pub empty: bool,
    /// Words of the answer.
    pub words: u32,
    /// Words of the question.
    pub question_words: u32,
    /// Share of the answer's runs of four words that it had said before.
    pub repetition: f64,
    /// Phrases of doubt.
    pub hedges: u32,
    /// Phrases of giving up.
    pub evasions: u32,
    /// Argument values that should come from the question or the context.
    pub values: u32,
    /// Of these, those that do.
    pub values_grounded: u32,
    /// Equations that hold.
    pub equations_right: u32,
    /// Equations that do not.
    pub equations_wrong: u32,
    /// Numbers in the answer.
    pub numbers: u32,
    /// Share of the question's numbers that the answer does not use.
    pub numbers_unused: f64,
    /// Share of the answer's words that are in the question.
    pub overlap: f64,
    /// Mean log-probability of the tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logprob_mean: Option<f64>,
    /// Share of further answers that say the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agreement: Option<f64>,
    /// What a judging model thinks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub judge: Option<f64>,
    /// Probability of a right answer as estimated before the call.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p_before: Option<f64>,
}

/// How many numbers [`Signals::vector`] gives.
pub const SIGNAL_COUNT: usize = 20;
/// Their names, in order; counts are `ln(1 + count)`, and what is missing is 0.
pub const SIGNAL_NAMES: [&str; SIGNAL_COUNT] = [
    "cut_off",
    "refused",
    "empty",
    "words",
    "question_words",
    "repetition",
    "hedges",
    "evasions",
    "ungrounded",
    "ungrounded_share",
    "equations_right",
    "equations_wrong",
    "numbers",
    "numbers_unused",
    "overlap",
    "logprob_mean",
    "logprob_known",
    "disagreement",
    "judge",
    "p_before",
];

impl Signals {
    /// The signals as numbers for a regression, in the order of [`SIGNAL_NAMES`].
    #[must_use]
    pub fn vector(&self) -> [f64; SIGNAL_COUNT] {
        let logged = |count: u32| f64::from(count).ln_1p();
        let flag = |is: bool| f64::from(u8::from(is));
        let ungrounded = self.values.saturating_sub(self.values_grounded);
        [
            flag(self.cut_off),
            flag(self.refused),
            flag(self.empty),
            logged(self.words),
            logged(self.question_words),
            self.repetition,
            logged(self.hedges),
            logged(self.evasions),
            logged(ungrounded),
            f64::from(ungrounded) / f64::from(self.values.max(1)),
            logged(self.equations_right),
            logged(self.equations_wrong),
            logged(self.numbers),
            self.numbers_unused,
            self.overlap,
            self.logprob_mean.unwrap_or(0.0).max(-20.0),
            flag(self.logprob_mean.is_some()),
            self.agreement.map_or(0.0, |share| 1.0 - share),
            self.judge.map_or(0.0, |judge| judge - 0.5),
            self.p_before.map_or(0.0, logit),
        ]
    }
}

/// Checks an answer.
#[must_use]
pub fn signals(evidence: &Evidence<'_>) -> Signals {
    let (question, answer) = (end_of(evidence.question), end_of(evidence.answer));
    let asked: Vec<String> = words(question).collect();
    let said: Vec<String> = words(answer).collect();
    let grounded = ground(evidence.arguments, question, evidence.context);
    let checked = check(answer);
    let lower = answer.to_lowercase().replace('’', "'");
    let known: BTreeSet<&str> = asked.iter().map(String::as_str).collect();
    let used: BTreeSet<&str> = said.iter().map(String::as_str).collect();
    let overlapping = said.iter().filter(|word| known.contains(word.as_str())).count();
    Signals {
        cut_off: evidence.cut_off,
        refused: evidence.refused,
        empty: answer.trim().is_empty() && evidence.arguments.is_empty(),
        words: length(&said),
        question_words: length(&asked),
        repetition: repetition(&said),
        hedges: occurrences(&lower, &HEDGES),
        evasions: occurrences(&lower, &REFUSALS),
        values: grounded.values,
        values_grounded: grounded.found,
        equations_right: checked.right,
        equations_wrong: checked.wrong,
        numbers: said.iter().filter(|word| is_number(word)).count() as u32,
        numbers_unused: unused(&known, &used),
        overlap: overlapping as f64 / said.len().max(1) as f64,
        logprob_mean: evidence.logprob_mean.filter(|mean| mean.is_finite()),
        agreement: evidence.agreement.map(|share| share.clamp(0.0, 1.0)),
        judge: evidence.judge.map(|judge| judge.clamp(0.0, 1.0)),
        p_before: evidence.p_before.map(|p| p.clamp(0.0, 1.0)),
    }
}

/// The log-odds of a probability, bounded so that certainty stays a number.
pub(crate) fn logit(p: f64) -> f64 {
    let p = p.clamp(1e-4, 1.0 - 1e-4);
    (p / (1.0 - p)).ln()
}

fn end_of(text: &str) -> &str {
    let mut start = text.len().saturating_sub(TEXT_BYTES_MAX);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    &text[start..]
}

fn length(words: &[String]) -> u32 {
    words.len() as u32
}

fn is_number(word: &str) -> bool {
    word.starts_with(|letter: char| letter.is_ascii_digit())
}

fn occurrences(text: &str, phrases: &[&str]) -> u32 {
    phrases.iter().map(|phrase| text.matches(phrase).count() as u32).sum()
}

fn repetition(words: &[String]) -> f64 {
    if words.len() < RUN_WORDS_MIN {
        return 0.0;
    }
    let mut seen = BTreeSet::new();
    let runs = words.windows(RUN_WORDS);
    let again = runs.filter(|run| !seen.insert(*run)).count();
    again as f64 / (words.len() - RUN_WORDS + 1) as f64
}

fn unused(known: &BTreeSet<&str>, used: &BTreeSet<&str>) -> f64 {
    let numbers: Vec<&&str> = known.iter().filter(|word| is_number(word)).collect();
    let missing = numbers.iter().filter(|number| !used.contains(**number)).count();
    missing as f64 / numbers.len().max(1) as f64
}
