//! Works out again what a text claims to have worked out: `12 * 3 = 36`.
//!
//! Only what is certain counts: an expression of plain numbers with an operator in it, an equals
//! sign, a number. What has letters in it is left alone.

/// Equations that are looked at in one text.
const EQUATIONS_MAX: usize = 64;
/// How far an expression may reach to the left of its equals sign.
const EXPRESSION_BYTES_MAX: usize = 120;
/// Nested brackets in an expression.
const DEPTH_MAX: usize = 16;
/// Rounding on the way is forgiven up to this share of a result that is no whole number.
const ROUNDING: f64 = 1e-3;
/// What the machine's own numbers may be off by.
const EXACT: f64 = 1e-9;

/// How many equations of a text hold and how many do not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Checked {
    pub(crate) right: u32,
    pub(crate) wrong: u32,
}

/// Checks the equations of a text.
pub(crate) fn check(text: &str) -> Checked {
    let mut checked = Checked::default();
    for (position, _) in text.match_indices('=').take(EQUATIONS_MAX) {
        let Some(expected) = left_value(&text[..position]) else { continue };
        let Some((claimed, decimals)) = right_value(&text[position + 1..]) else { continue };
        if (expected - claimed).abs() <= slack(expected, decimals) {
            checked.right += 1;
        } else {
            checked.wrong += 1;
        }
    }
    checked
}

/// How far a claimed result may be off: whole numbers not at all, others by their rounding.
fn slack(expected: f64, decimals: i32) -> f64 {
    let size = expected.abs().max(1.0);
    if (expected - expected.round()).abs() <= EXACT * size {
        return EXACT * size;
    }
    (ROUNDING * expected.abs()).max(0.5 * 10f64.powi(-decimals) + EXACT)
}

/// The value of the expression that ends the text, if it is one of plain numbers and complete.
fn left_value(text: &str) -> Option<f64> {
    let mut start = text.len();
    for (position, letter) in text.char_indices().rev() {
        if !is_part(letter) || text.len() - position > EXPRESSION_BYTES_MAX {
            break;
        }
        start = position;
    }
    let before = text[..start].chars().next_back();
    let expression = &text[start..];
    // Letters beside it: a variable or a unit belongs to the expression, or words come before it.
    if before.is_some_and(char::is_alphanumeric) && !expression.starts_with([' ', '\n', '(']) {
        return None;
    }
    let tokens = tokens(expression)?;
    if !tokens.iter().any(|token| matches!(token, Token::Operator(_))) {
        return None;
    }
    let mut parser = Parser { tokens: &tokens, at: 0, depth: 0 };
    let value = parser.sum()?;
    (parser.at == tokens.len() && value.is_finite()).then_some(value)
}

/// The number that begins the text, and its decimals.
fn right_value(text: &str) -> Option<(f64, i32)> {
    let text = text.trim_start_matches([' ', '$', '€', '£', '\\', '*']);
    let end = text
        .char_indices()
        .find(|(idx, letter)| {
            let is_sign = *idx == 0 && *letter == '-';
            !(is_sign || letter.is_ascii_digit() || matches!(letter, '.' | ','))
        })
        .map_or(text.len(), |(idx, _)| idx);
    let number = text[..end].trim_end_matches(['.', ',']);
    let rest = text[end..].trim_start();
    // The right side goes on: an unknown, an expression, a fraction, a power of ten, a remainder.
    let goes_on = rest.starts_with(|letter: char| letter.is_alphabetic() && !is_unit(rest))
        || rest.starts_with(['+', '*', '/', '×', '÷', '^', '%', '(', '\\', ':', '·'])
        || (rest.starts_with('-')
            && rest[1..].trim_start().starts_with(|c: char| c.is_ascii_digit()));
    if goes_on || rest.contains("mod ") {
        return None;
    }
    let decimals = number.split_once('.').map_or(0, |(_, after)| after.len().min(12) as i32);
    Some((plain(number)?, decimals))
}

/// Whether a word follows the number, as a unit does: of several letters, not an unknown.
fn is_unit(rest: &str) -> bool {
    let word = rest.split(|letter: char| !letter.is_alphabetic()).next().unwrap_or("");
    word.len() > 1 && word != "mod"
}

fn plain(number: &str) -> Option<f64> {
    let value: f64 = number.replace(',', "").parse().ok()?;
    value.is_finite().then_some(value)
}

fn is_part(letter: char) -> bool {
    letter.is_ascii_digit()
        || matches!(
            letter,
            ' ' | '.' | ',' | '+' | '-' | '*' | '/' | '(' | ')' | '×' | '÷' | '−' | '$' | '€' | '£'
        )
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Token {
    Number(f64),
    Operator(char),
    Open,
    Close,
}

fn tokens(expression: &str) -> Option<Vec<Token>> {
    let mut found = Vec::new();
    let mut rest = expression.trim();
    while let Some(letter) = rest.chars().next() {
        let length = if letter.is_ascii_digit() || letter == '.' {
            let end = rest.find(|c: char| !(c.is_ascii_digit() || c == '.' || c == ','));
            let number = &rest[..end.unwrap_or(rest.len())];
            found.push(Token::Number(plain(number.trim_end_matches(','))?));
            number.len()
        } else {
            match letter {
                '+' | '-' | '*' | '/' => found.push(Token::Operator(letter)),
                '−' => found.push(Token::Operator('-')),
                '×' => found.push(Token::Operator('*')),
                '÷' => found.push(Token::Operator('/')),
                '(' => found.push(Token::Open),
                ')' => found.push(Token::Close),
                ' ' | '$' | '€' | '£' => {}
                _ => return None,
            }
            letter.len_utf8()
        };
        rest = &rest[length..];
    }
    Some(found)
}

/// Sums of products of numbers, signs and brackets.
struct Parser<'a> {
    tokens: &'a [Token],
    at: usize,
    depth: usize,
}

impl Parser<'_> {
    fn sum(&mut self) -> Option<f64> {
        let mut value = self.product()?;
        while let Some(operator) = self.operator(&['+', '-']) {
            let other = self.product()?;
            value = if operator == '+' { value + other } else { value - other };
        }
        Some(value)
    }

    fn product(&mut self) -> Option<f64> {
        let mut value = self.factor()?;
        while let Some(operator) = self.operator(&['*', '/']) {
            let other = self.factor()?;
            value = if operator == '*' { value * other } else { value / other };
        }
        Some(value)
    }

    fn factor(&mut self) -> Option<f64> {
        let sign = if self.operator(&['-']).is_some() { -1.0 } else { 1.0 };
        let token = *self.tokens.get(self.at)?;
        self.at += 1;
        match token {
            Token::Number(value) => Some(sign * value),
            Token::Open if self.depth < DEPTH_MAX => {
                self.depth += 1;
                let value = self.sum()?;
                self.depth -= 1;
                let closed = self.tokens.get(self.at) == Some(&Token::Close);
                self.at += 1;
                closed.then_some(sign * value)
            }
            _ => None,
        }
    }

    fn operator(&mut self, wanted: &[char]) -> Option<char> {
        let Some(Token::Operator(operator)) = self.tokens.get(self.at) else { return None };
        wanted.contains(operator).then(|| {
            self.at += 1;
            *operator
        })
    }
}
