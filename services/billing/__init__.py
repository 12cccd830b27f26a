"""Billing: takes usage in, answers quota live, prices it, drafts the invoice, shows the proof."""
