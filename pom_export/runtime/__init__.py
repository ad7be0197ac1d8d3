"""Find our libraries and run models: sessions and runners."""
