"""Every HTML page of taro comes from here."""
