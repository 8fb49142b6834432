"""What only training needs: schedules, and how a resumed run goes on."""
